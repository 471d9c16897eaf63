# SPDX-License-Identifier: Apache-2.0
"""EmbeddingPicturesHook: which samples are shown for which prototype, and what a failure does to a training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')
from mmengine.runner import EpochBasedTrainLoop
from mmengine.structures import BaseDataElement

from clusterplug import visualization
from clusterplug.hooks import EmbeddingPicturesHook
from clusterplug.hooks.embedding_pictures import picture_of


class Runner(SimpleNamespace):
    """What the hook reads of a Runner."""


@pytest.fixture
def runner(tmp_path):
    warned = []
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo={}))
    return Runner(epoch=3, iter=40, log_dir=tmp_path, val_dataloader=loader, warned=warned,
                  logger=SimpleNamespace(warning=warned.append))  # fmt: skip


def batches(best, scores, labels=None, images=None):
    """One batch of single-row samples whose image is of one gray each: its number."""
    samples = []
    for n, (prototype, score) in enumerate(zip(best, scores)):
        sample = BaseDataElement(metainfo={} if labels is None else dict(gt_label=labels[n]))
        x = torch.randn(1, 4, generator=torch.Generator().manual_seed(n))
        sample.set_data(dict(features=x, embeddings=x, prototype=torch.tensor([prototype]),
                             prototype_score=torch.tensor([score])))  # fmt: skip
        samples.append(sample)
    images = [torch.full((3, 2, 2), n, dtype=torch.uint8) for n in range(len(best))] if images is None else images
    return dict(inputs=dict(views=[images])), samples


def gray(picture):
    return round(float((picture[0, 0, 0] + 1) * 127.5))


def test_rows_are_the_largest_prototypes_with_their_best_samples(runner, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        visualization, 'save_image_grid', lambda path, images, names: drawn.update(grid=(images, names))
    )
    monkeypatch.setattr(visualization, 'save_embedding_map', lambda path, *args: drawn.update(map=args))
    hook = EmbeddingPicturesHook(num_prototypes=2, num_nearest=3, ignore_index=9)
    hook.before_val_epoch(runner)
    #          number: 0    1    2    3    4    5    6    7 (ignored)
    best, scores = [2, 2, 0, 2, 2, 0, 1, 2], [0.1, 0.9, 0.5, 0.4, 0.8, 0.7, 0.6, 1.0]
    data, samples = batches(best, scores, labels=[0, 1, 0, 1, 0, 1, 0, 9])
    hook.after_val_iter(runner, 0, data, samples[:])
    hook.after_val_epoch(runner)
    images, names = drawn['grid']
    assert names == ['2: 4', '0: 2']
    assert [gray(picture) for picture in images[0]] == [1, 4, 3]
    assert [gray(picture) for picture in images[1]] == [5, 2, 255]  # filled up with white
    x, labels, prototypes, *_ = drawn['map']
    assert (len(x), set(labels), sorted(prototypes)) == (7, {0, 1}, sorted(best[:7]))
    assert not hook._rows


def test_a_failing_picture_is_a_warning_and_no_prototypes_are_no_sheet(runner, monkeypatch, tmp_path):
    hook = EmbeddingPicturesHook(out_dir=tmp_path / 'pictures')
    data, samples = batches([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    for sample in samples:
        del sample.prototype, sample.prototype_score
    hook.after_val_iter(runner, 0, data, samples)
    hook.after_val_epoch(runner)
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == ['embeddings.png']
    assert not runner.warned
    hook.before_train(runner)
    for loop, name in ((object(), 'iter_40'), (EpochBasedTrainLoop.__new__(EpochBasedTrainLoop), 'epoch_3')):
        runner.train_loop = loop
        hook.after_val_iter(runner, 0, data, samples)
        hook.after_val_epoch(runner)
        assert (tmp_path / 'pictures' / f'{name}_embeddings.png').stat().st_size > 1000
    hook.after_train(runner)
    monkeypatch.setattr(visualization, 'save_embedding_map', lambda *args: 1 / 0)
    hook.after_val_iter(runner, 0, data, samples)
    hook.after_val_epoch(runner)
    assert 'could not draw: ZeroDivisionError' in runner.warned[0]


def test_a_point_is_shown_from_above_and_a_volume_by_its_middle():
    points = torch.tensor([[0.0, 0, 0, 1], [20, 0, 0, 1], [20, 2, 0, 1]])
    inputs = dict(views=[[points]], matches=[torch.tensor([[2], [0]])])
    near, alone = (picture_of(inputs, 0, row) for row in (0, 1))
    background, around = -1 + 24 / 127.5, -1 + 110 / 127.5
    assert near.shape == (3, 120, 120)
    assert np.isclose(near[0], around, atol=1e-6).any()  # the other point is 2 m away
    assert not np.isclose(alone[0], around, atol=1e-6).any()
    colored = [int(np.isclose(each[2], -1 + 40 / 127.5, atol=1e-6).sum()) for each in (near, alone)]
    assert colored == [4, 4]
    wide = picture_of(dict(views=[[torch.cat([points, points[1:2] + 0.5])]], matches=[torch.tensor([[1]])]), 0, 0)
    assert int(np.isclose(wide[2], -1 + 40 / 127.5, atol=1e-6).sum()) == 8
    assert np.isclose(near[0], background, atol=1e-6).any()
    volume = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    assert gray(picture_of(dict(views=[[volume]]), 0, 0)) == 2


def test_bad_options_and_other_predictions(runner):
    for options in (
        dict(field='x'),
        dict(method='x'),
        dict(max_samples=1),
        dict(num_nearest=0),
        dict(num_prototypes=0),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            EmbeddingPicturesHook(**options)
    with pytest.raises(ValueError, match='needs embeddings in the predictions'):
        EmbeddingPicturesHook().after_val_iter(runner, 0, {}, [BaseDataElement()])
