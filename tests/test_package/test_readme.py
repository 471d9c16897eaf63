"""The examples of the README run; models get random weights, so that nothing is fetched."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).resolve().parents[2] / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
TRANSFORMERS = 'from transformers import Dinov2Config, Dinov2Model\nmodel = Dinov2Model(Dinov2Config(image_size=320))\n'


def test_kernels():
    (source,) = [block for block in BLOCKS if 'sinkhorn' in block]
    found = {}
    exec(source, found)
    plan = found['plan']
    assert plan.shape == (1000, 10)
    torch.testing.assert_close(plan.sum(0), plan.sum().expand(10) / 10, rtol=0.02, atol=0)


@torch.no_grad()
@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_token_clustering(library):
    pytest.importorskip(library, reason=f'needs {library}')
    (source,) = [block for block in BLOCKS if 'import timm' in block]
    make, apply, remove = re.fullmatch(r'(.*\n)(patch\.apply.*\n)(patch\.remove.*\n)', source, re.DOTALL).groups()
    make = make.replace('pretrained=True', 'pretrained=False')
    if library == 'transformers':
        make = re.sub(r'import timm\n|model = .*\n', '', make) + TRANSFORMERS
    found = {}
    exec(make, found)
    model, image = found['model'].eval(), torch.randn(1, 3, 320, 320)

    def features():
        return model.forward_features(image) if library == 'timm' else model(image).last_hidden_state

    before = features()
    exec(apply, found)
    reduced = features()
    assert reduced.shape == before.shape
    assert not torch.equal(reduced, before)
    exec(remove, found)
    assert torch.equal(features(), before)
