# SPDX-License-Identifier: Apache-2.0
"""configs/fec: each builds in its host and takes training steps."""

from pathlib import Path

import pytest
import torch

from clusterplug.backbones import FEC

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mmdet3d]')
FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'fec'
SIZES = ('small', 'base', 'large')


def load(name, scope):
    pytest.importorskip(scope, reason=f'needs {scope}')
    from mmengine.registry import init_default_scope

    from clusterplug.cli import load_config

    config = load_config(str(FOLDER / name), work_dir='x')
    init_default_scope(scope)
    return config


def steps(config, data, number=2):
    """Train on the same data; returns losses of each step and the model."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    torch.manual_seed(0)
    if config.get('data_preprocessor'):  # mmpretrain's stands beside the model; the Runner puts it in
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    backbone = model.backbone
    before = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    losses = [model.train_step(data, wrapper) for _ in range(number)]
    assert isinstance(backbone, FEC)
    still = {name for name, value in backbone.named_parameters() if value.equal(before[name])}
    assert not still, sorted(still)
    return losses, model


def finite(losses):
    values = [value for each in losses for value in (each if isinstance(each, list) else [each])]
    return all(torch.isfinite(torch.as_tensor(value)).all() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize('size', SIZES)
def test_mask_rcnn(size):
    config = load(f'mask-rcnn_fec-{size}_fpn_4xb4-1x_coco.py', 'mmdet')
    from mmdet.testing import demo_mm_inputs

    config.model.backbone.arch = dict(type=size, layer_scale=0.1)  # of 1e-5, little would move in two steps
    config.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    data = demo_mm_inputs(2, [[3, 128, 160], [3, 120, 150]], num_items=[2, 1], num_classes=80, with_mask=True)
    losses, model = steps(config, data)
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses[0])
    assert all(finite(each.values()) for each in losses)
    assert config.train_dataloader.batch_size * 4 == config.auto_scale_lr.base_batch_size
    model.eval()
    with torch.no_grad():
        results = model.test_step(demo_mm_inputs(1, [[3, 100, 130]], num_classes=80))
    assert results[0].pred_instances.bboxes.shape[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize('size', SIZES)
def test_semantic_fpn(size):
    config = load(f'fpn_fec-{size}_4xb4-80k_ade20k-512x512.py', 'mmseg')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    config.model.backbone.arch = dict(type=size, layer_scale=0.1)
    config.model.data_preprocessor.size = (128, 128)
    config.model.decode_head.norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN runs on a device only
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(128, 128), ori_shape=(128, 128), pad_shape=(128, 128)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 128, 128)))
        samples.append(sample)
    data = dict(
        inputs=[torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8) for _ in range(2)], data_samples=samples
    )
    losses, model = steps(config, data)
    assert all(finite(each.values()) for each in losses)
    assert config.train_cfg.max_iters == 80000
    assert model.backbone.arch.grid[0] == (10, 10)


@pytest.mark.slow
@pytest.mark.parametrize('size', SIZES)
def test_imagenet(size):
    config = load(f'fec-{size}_8xb128-300e_in1k.py', 'mmpretrain')
    from mmpretrain.structures import DataSample

    config.model.backbone.arch = dict(type=size, layer_scale=0.1)
    samples = [DataSample().set_gt_label(label) for label in (3, 5)]
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)], data_samples=samples)
    losses, _ = steps(config, data)
    assert all(finite(each.values()) for each in losses)
    assert config.train_cfg.max_epochs == 300


def test_a_config_is_its_base_and_a_few_lines():
    for path in FOLDER.glob('*.py'):
        assert sum('clusterplug' in line for line in path.read_text().splitlines()) <= 5, path
