# SPDX-License-Identifier: Apache-2.0
"""Weights of FEC in files: the authors' names, other heads, what is no checkpoint; the converter."""

import argparse
import runpy
from pathlib import Path

import pytest
import torch

from clusterplug.backbones import FEC, convert_official, create, load_fec, resolve_arch
from clusterplug.backbones.fec_checkpoint import read_weights
from clusterplug.testing.plain_fec import PlainFEC

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'model_converters' / 'fec.py'
TINY = dict(blocks=(1, 1), dims=(8, 12), mlp_ratios=(2, 2), heads=(2, 1), head_dims=(4, 6), grid=(2, 2), fold=(1, 1))


def official(arch='small', num_classes=10):
    torch.manual_seed(0)
    return PlainFEC(resolve_arch(arch), num_classes).state_dict()


def convert(*arguments):
    return runpy.run_path(str(TOOL))['main']([str(argument) for argument in arguments])


@pytest.mark.parametrize('num_classes', [0, 10])
def test_every_name_of_theirs_has_one_of_ours(num_classes):
    state = convert_official(official(TINY, num_classes))
    model = FEC(TINY, num_classes=num_classes)
    assert set(state) == set(model.state_dict())
    model.load_state_dict(state, strict=True)


def test_converter(tmp_path, capsys):
    # as timm saves: averaged weights beside plain ones, the command line, names of data parallel training
    state = official()
    content = dict(
        state_dict={f'module.{key}': torch.zeros_like(value) for key, value in state.items()},
        state_dict_ema={f'module.{key}': value for key, value in state.items()},
        args=argparse.Namespace(lr=1e-3), epoch=309,
    )  # fmt: skip
    torch.save(content, tmp_path / 'theirs.pth')
    assert convert(tmp_path / 'theirs.pth', tmp_path / 'ours.pth') == 0
    assert 'fec_small, head of 10 classes, 5,409,738 numbers' in capsys.readouterr().out
    plain = PlainFEC(resolve_arch('small'), 10).eval()
    plain.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model = create('fec_small', 10, checkpoint=tmp_path / 'ours.pth').eval()
        torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=1e-5)
        assert convert(tmp_path / 'theirs.pth', tmp_path / 'backbone.pth', '--backbone') == 0
        backbone = FEC('small').eval()
        backbone.load_state_dict(torch.load(tmp_path / 'backbone.pth')['state_dict'], strict=True)
        torch.testing.assert_close(backbone(x)[-1].mean((2, 3)) @ model.head.weight.T + model.head.bias, model(x))


def test_converter_refuses(tmp_path):
    with pytest.raises(SystemExit, match='does not exist'):
        convert(tmp_path / 'none.pth', tmp_path / 'out.pth')
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    with pytest.raises(SystemExit, match='must hold the weights of a model'):
        convert(tmp_path / 'empty.pth', tmp_path / 'out.pth')
    torch.save({'network.0.0.attention.weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='is no name of guikunchen/FEC'):
        convert(tmp_path / 'other.pth', tmp_path / 'out.pth')
    state = official()
    state.pop('patch_embed.proj.bias')
    torch.save(state, tmp_path / 'part.pth')
    with pytest.raises(SystemExit, match='all weights of fec_small, fec_base, fec_large'):
        convert(tmp_path / 'part.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_a_checkpoint_of_another_head(tmp_path):
    torch.save(dict(state_dict=FEC(TINY, num_classes=10).state_dict()), tmp_path / 'ten.pth')
    model = FEC(TINY, num_classes=3)
    head = model.head.weight.clone()
    with pytest.raises(ValueError, match=r'head of 3 classes, got one of 10; .*num_classes=10, or pass new_head=True'):
        load_fec(model, tmp_path / 'ten.pth')
    load_fec(model, tmp_path / 'ten.pth', new_head=True)
    assert model.head.weight.equal(head)
    ten = torch.load(tmp_path / 'ten.pth')['state_dict']
    assert model.stem.proj.weight.equal(ten['stem.proj.weight'])
    with pytest.raises(ValueError, match='head of 3 classes, got no head'):
        load_fec(model, FEC(TINY).state_dict())
    with pytest.raises(ValueError, match=r'same architecture: .* are missing .* check arch'):
        load_fec(FEC('small'), ten)


def test_weights_of_a_detector_and_init_cfg(tmp_path):
    whole = {f'backbone.{key}': value for key, value in FEC(TINY, num_classes=4).state_dict().items()}
    whole['neck.weight'] = torch.zeros(3)
    torch.save(dict(state_dict=whole), tmp_path / 'detector.pth')
    model = FEC(TINY, out_indices=(1,), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth')))
    model.init_weights()
    assert model.stem.proj.weight.equal(whole['backbone.stem.proj.weight'])
    assert model.norms['1'].weight.equal(whole['backbone.norms.1.weight'])
    with pytest.raises(ValueError, match='init_cfg must be dict'):
        FEC(TINY, init_cfg=dict(type='Kaiming')).init_weights()


class Noisy(torch.nn.Module):
    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return 3, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        print('MARK')
        self.training = state[1]


def test_code_of_a_file_does_not_run_in_any_torch(tmp_path, monkeypatch, capfd):
    torch.jit.script(Noisy()).save(str(tmp_path / 'a.pth'))

    def load(*_, **__):  # before torch 2.6 this hands such files to torch.jit.load, weights_only or not
        torch.jit.load(tmp_path / 'a.pth')

    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(ValueError, match=r'a\.pth must be a checkpoint'):
        read_weights(tmp_path / 'a.pth')
    assert 'MARK' not in capfd.readouterr().out


@pytest.mark.parametrize('more', [(), ('--backbone',)])
@pytest.mark.parametrize(
    'state',
    [
        {'layer1.0.conv.weight': torch.zeros(2)}, {'norms.0.weight': torch.zeros(2)}, {3: torch.zeros(2)},
        {'norms.x.weight': torch.zeros(2)}, {'norms.0.weight': torch.zeros(2), 'stem.proj.bias': 4},
        {'head.weight': torch.tensor(3.0), 'norms.99999999999.bias': torch.zeros(1)},
    ],
)  # fmt: skip
def test_converter_names_what_is_no_fec(tmp_path, state, more):
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match=r'^fec: (the weights must be those of an FEC|checkpoint must hold tensors)'):
        convert(tmp_path / 'other.pth', tmp_path / 'out.pth', *more)


def test_converter_never_writes_its_source(tmp_path):
    torch.save(dict(state_dict=official()), tmp_path / 'theirs.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'theirs.pth')
    before = (tmp_path / 'theirs.pth').read_bytes()
    for target in ('theirs.pth', 'link.pth'):
        with pytest.raises(SystemExit, match='which is only read'):
            convert(tmp_path / 'theirs.pth', tmp_path / target)
    assert (tmp_path / 'theirs.pth').read_bytes() == before
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match='fec: '):
        convert(tmp_path / 'theirs.pth', tmp_path / 'file' / 'out.pth')
