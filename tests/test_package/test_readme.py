# SPDX-License-Identifier: Apache-2.0
"""The examples of the README run; models get random weights, so that nothing is fetched."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
TRANSFORMERS = 'from transformers import Dinov2Config, Dinov2Model\nmodel = Dinov2Model(Dinov2Config(image_size=320))\n'


def test_kernels():
    (source,) = [block for block in BLOCKS if 'sinkhorn' in block]
    found = {}
    torch.manual_seed(0)
    exec(source, found)
    assert sorted(set(found['labels'].tolist())) == list(range(8))
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


def test_the_page_is_short_and_its_parts_are_where_others_look_for_them():
    assert len(TEXT.splitlines()) <= 130
    begin, end = TEXT.index('<!-- demo: begin -->'), TEXT.index('<!-- demo: end -->')
    assert '| mIoU |' in TEXT[begin:end]
    first_screen = ''.join(TEXT.splitlines(keepends=True)[:30])
    wanted = (
        'KMeans(n_clusters=8).fit(X)',
        'search_videos.py',
        'patch.apply',
        'PointClusterLoss',
        'make demo',
        'make test',
    )
    assert [word for word in wanted if word not in first_screen] == []
    for page in ('docs/own_data.md', 'docs/security.md', 'docs/index.md', 'NOTICE', 'LICENSE'):
        assert f']({page})' in TEXT, page


def test_the_advertised_loss_is_the_measured_one():
    mmengine = pytest.importorskip('mmengine', reason='needs mmengine')
    import clusterplug.registry  # noqa: F401

    (source,) = [block for block in BLOCKS if '_base_' in block]
    shown = mmengine.Config.fromstring(source, '.py').model
    (path,) = (ROOT / 'configs' / 'point_cluster').glob('point-cluster_minkunet18_w8_*_lidar-city.py')
    measured = mmengine.Config.fromfile(path).model
    assert shown.embedding == measured.embedding
    assert shown.loss == measured.loss


def test_the_advertised_reduction_is_one_that_runs():
    timm = pytest.importorskip('timm', reason='needs timm')
    from clusterplug import patch

    (call,) = re.findall(r'`(patch\.apply\(model.*?\))`<?|$', TEXT.split('## Try it')[0])[:1]
    model = timm.create_model('vit_tiny_patch16_224', img_size=592, depth=8).eval()
    eval(call, {'patch': patch, 'model': model})
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 592, 592)).shape == (1, 1 + 37 * 37, 192)
