# SPDX-License-Identifier: Apache-2.0
"""The classes of mmdetection and mmsegmentation themselves, and the configs of configs/token_clustering."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')

from mmengine.config import Config

from clusterplug import compat, patch
from clusterplug.registry import MODELS

compat.apply_all()  # mmsegmentation imports mmpretrain where it is installed
CONFIGS = sorted((Path(__file__).resolve().parents[2] / 'configs' / 'token_clustering').glob('*.py'))


def count_tokens(backbone, blocks):
    lengths = []
    for block in blocks:
        block.register_forward_pre_hook(lambda block, args: lengths.append(args[0].shape[1]))
    return lengths


def vit(**options):
    pytest.importorskip('mmseg', reason='needs mmsegmentation: pip install mmsegmentation')
    from mmseg.models.backbones import VisionTransformer

    sizes = dict(img_size=64, patch_size=8, embed_dims=32, num_layers=4, num_heads=2, mlp_ratio=2)
    model = VisionTransformer(**sizes, out_indices=(1, 3), **options)
    model.eval()
    return model


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, dict(with_cls_token=False), dict(output_cls_token=True)])
def test_vit_of_mmsegmentation(options):
    model, image = vit(**options), torch.randn(2, 3, 64, 64)
    plain = model(image)
    patch.apply(model, start=1, grid=(5, 6))
    lengths = count_tokens(model, model.layers)
    reduced = model(image)
    prefix = 0 if options.get('with_cls_token') is False else 1
    assert lengths == [64 + prefix, 30 + prefix, 30 + prefix, 30 + prefix]

    def flat(outputs):
        return [each for out in outputs for each in (out if isinstance(out, (list, tuple)) else [out])]

    assert [each.shape for each in flat(plain)] == [each.shape for each in flat(reduced)]
    assert not torch.equal(flat(plain)[0], flat(reduced)[0])
    patch.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(flat(plain), flat(model(image))))


@torch.no_grad()
@pytest.mark.parametrize('out_type', ['cls_token', 'raw'])
def test_vit_of_mmpretrain(out_type):
    pytest.importorskip('mmpretrain', reason='needs mmpretrain: pip install mmpretrain')
    from mmpretrain.models import VisionTransformer

    model = VisionTransformer('deit-tiny', img_size=64, patch_size=8, out_indices=(5, 11), out_type=out_type)
    model.eval()
    image = torch.randn(2, 3, 64, 64)
    plain = model(image)
    patch.apply(model, start=3, grid=(4, 4))
    lengths = count_tokens(model, model.layers)
    reduced = model(image)
    assert lengths == [65] * 3 + [17] * 9
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    patch.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, model(image)))


@torch.no_grad()
def test_swin_of_mmsegmentation():
    pytest.importorskip('mmseg', reason='needs mmsegmentation: pip install mmsegmentation')
    from mmseg.models.backbones import SwinTransformer

    model = SwinTransformer(
        pretrain_img_size=64, embed_dims=16, patch_size=8, strides=(8, 2), window_size=4, depths=(4, 2),
        num_heads=(2, 2), out_indices=(0, 1), drop_path_rate=0.0,
    )  # fmt: skip
    model.eval()
    image = torch.randn(1, 3, 64, 64)
    plain = model(image)
    patch.apply(model, start=1, end=3, grid=(5, 6))
    lengths = count_tokens(model, model.stages[0].blocks)
    reduced = model(image)
    assert lengths == [64, 30, 30, 64]
    assert [each.shape for each in plain] == [each.shape for each in reduced]
    patch.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, model(image)))


@torch.no_grad()
def test_a_backbone_from_a_config_runs_on_fewer_tokens():
    pytest.importorskip('mmdet', reason='needs mmdet')
    inner = dict(
        type='mmdet.SwinTransformer', pretrain_img_size=64, embed_dims=16, patch_size=8, strides=(8, 2), window_size=4,
        depths=(4, 2), num_heads=(2, 2), out_indices=(0, 1),
    )  # fmt: skip
    model = MODELS.build(dict(type='clusterplug.TokenClusteringViT', backbone=inner, start=1, end=3, grid=[5, 6]))
    model.eval()
    plain = MODELS.build(inner)
    plain.eval()
    assert plain.state_dict().keys() == model.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    lengths = count_tokens(model, model.stages[0].blocks)
    reduced = model(image)
    assert lengths == [64, 30, 30, 64]
    assert all(torch.equal(a, b) for a, b in zip(plain(image), patch.remove(model)(image)))
    assert not torch.equal(reduced[0], plain(image)[0])


def small(config):
    """The config's model at a tenth of its size, with its number of blocks and tokens."""
    config.model.backbone.update(embed_dims=48, num_heads=4)
    head = config.model.decode_head
    head.update(in_channels=48, channels=16)
    if 'embed_dims' in head:
        head.update(embed_dims=48, num_heads=4)
    config.model.auxiliary_head = None
    config.model.pretrained = None
    config.model.backbone.init_cfg = None
    for part in (config.model, head):
        for key in ('norm_cfg',):
            if key in part:
                part[key] = dict(type='BN')
    return config


@torch.no_grad()
@pytest.mark.parametrize(
    'path',
    [pytest.param(path, marks=pytest.mark.slow if '768' in path.stem else ()) for path in CONFIGS],
    ids=lambda path: path.stem,
)
def test_configs_build_and_run(path):
    pytest.importorskip('mmseg', reason='needs mmsegmentation: pip install mmsegmentation')
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.utils import register_all_modules

    from clusterplug.registry import HOOKS

    register_all_modules(init_default_scope=False)
    config = small(Config.fromfile(path))
    model = SEGMENTORS.build({**config.model, '_scope_': 'mmseg'})
    model.eval()
    hook = HOOKS.build(dict(config.custom_hooks[-1]))
    size = config.crop_size[0]
    image = torch.randn(1, 3, size, size)
    plain = model.encode_decode(image, [dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))])

    class Runner:
        pass

    runner = Runner()
    runner.model = model
    hook.before_test(runner)
    lengths = count_tokens(model.backbone, model.backbone.layers)
    reduced = model.encode_decode(image, [dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))])
    hook.after_test(runner)
    start, grid = hook.options['start'], hook.options['grid']
    full = (size // 16) ** 2 + 1
    depth = len(model.backbone.layers)
    assert lengths == [full] * start + [grid[0] * grid[1] + 1] * (depth - start)
    assert reduced.shape == plain.shape
    assert not torch.equal(reduced, plain)
