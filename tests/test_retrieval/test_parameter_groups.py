# SPDX-License-Identifier: Apache-2.0
"""Learning rate and decay of every parameter of every kind of model, as the docs promise them."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from clusterplug.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'centerclip'
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
VISION, TEXT = SIZES | dict(image_size=16, patch_size=8), SIZES | dict(vocab_size=30)
CLIP = dict(
    type='clusterplug.TransformersEncoders', config=dict(vision_config=VISION, text_config=TEXT, projection_dim=64)
)
SEQUENCE = dict(type='clusterplug.SequenceTransformer', embed_dims=64, num_blocks=2)
FEATURES = dict(type='clusterplug.FeatureEncoders', video_channels=8, text_channels=6, embed_dims=64)


def siglip(folder):
    from transformers import SiglipConfig, SiglipModel

    text = TEXT | dict(projection_size=64, max_position_embeddings=16)
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)).save_pretrained(folder)
    return dict(type='clusterplug.TransformersEncoders', pretrained=str(folder))


def settings(model, optim_wrapper):
    """(rate, decay) of each parameter by its name."""
    optimizer = build_optim_wrapper(model, dict(optim_wrapper, type='OptimWrapper')).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (g['lr'], g['weight_decay']) for g in optimizer.param_groups for p in g['params']}


def expected(name, lr, head_lr, decay):
    leaf = name.rpartition('.')[2]
    exempt = leaf.endswith('bias') or 'norm' in name or 'layrnorm' in name or '.ln_' in name or 'logit' in name
    exempt |= name in ('encoders.video.0.weight', 'encoders.text.0.weight')  # LayerNorms of FeatureEncoders
    return head_lr if name.startswith('head.') else lr, 0.0 if exempt else decay


@pytest.mark.parametrize('clustering', [None, dict(after_block=1, segments=2, clusters=3)])
@pytest.mark.parametrize('head', [None, SEQUENCE], ids=['meanP', 'seqTransf'])
@pytest.mark.parametrize('tower', ['clip', 'siglip', 'features'])
def test_every_parameter(tmp_path, tower, head, clustering):
    if tower == 'features' and clustering:
        pytest.skip('features have no tokens to cluster')
    encoders = dict(clip=CLIP, features=FEATURES).get(tower) or siglip(tmp_path)
    if clustering:
        encoders = encoders | dict(clustering=clustering)
    model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders, head=head))
    name = 'seqtransf' if head else 'meanp'
    config = Config.fromfile(CONFIGS / f'clip4clip-{name}_vit-b32_2xb64-amp-5e_msrvtt-9k.py')
    found = settings(model, config.optim_wrapper)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, value in found.items():
        assert value == pytest.approx(expected(name, 5e-6, 1e-4, 0.2)), name
    if tower == 'siglip':  # where a rule by a part of the name goes wrong
        assert found['encoders.clip.vision_model.head.probe'] == pytest.approx((5e-6, 0.2))
        assert found['encoders.clip.vision_model.head.attention.in_proj_bias'] == pytest.approx((5e-6, 0))
        assert found['encoders.clip.logit_bias'] == pytest.approx((5e-6, 0))
    if tower == 'clip':
        assert found['encoders.clip.vision_model.embeddings.class_embedding'] == pytest.approx((5e-6, 0.2))
    if head:
        assert found['head.blocks.1.attn.in_proj_bias'] == pytest.approx((1e-4, 0))
        assert found['head.positions'] == pytest.approx((1e-4, 0.2))


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_rates_of_every_config(path):
    config = Config.fromfile(path)
    head = SEQUENCE if config.model.get('head', {}).get('type', '').endswith('SequenceTransformer') else None
    model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=FEATURES, head=head))
    optimizer = config.optim_wrapper.optimizer
    for name, value in settings(model, config.optim_wrapper).items():
        assert value == pytest.approx(expected(name, optimizer.lr, 1e-4, optimizer.weight_decay)), name


def test_frozen_and_shared_parameters_and_odd_options():
    model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=FEATURES, head=SEQUENCE))
    model.head.blocks[1].c_fc = model.head.blocks[0].c_fc
    model.encoders.video[2].weight.requires_grad_(False)
    wrapper = dict(constructor='clusterplug.RetrievalOptimWrapperConstructor',
                   optimizer=dict(type='SGD', lr=0.1, weight_decay=0.5))  # fmt: skip
    found = settings(model, wrapper)
    assert set(found) == {name for name, p in model.named_parameters()} - {'encoders.video.2.weight'}
    assert found['head.blocks.0.c_fc.weight'] == (0.1, 0.5)
    for paramwise, message in (
        (dict(custom_keys={'head.': dict(lr_mult=2)}), 'has the key head_lr_mult, got custom_keys'),
        (dict(head_lr_mult=-1), 'head_lr_mult must be'),
    ):
        with pytest.raises(ValueError, match=message):
            settings(model, wrapper | dict(paramwise_cfg=paramwise))
    with pytest.raises(ValueError, match='must have encoders'):
        settings(torch.nn.Linear(2, 2), wrapper)
