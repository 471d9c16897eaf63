# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/image_volume.py that its figures rest on, by hand and against scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from _frozen_slices import difference, reduced
from _frozen_training import _neighbors, view


def test_hidden_slices_lie_between_their_neighbors():
    x = torch.tensor([0.0, 1, 4, 9, 16])[None, :, None]
    hidden = torch.tensor([[True, False, True, True, False]])
    assert _neighbors(x, hidden)[0, :, 0].tolist() == [1.0, 1.0, 8.5, 8.5, 16.0]


def test_difference_of_areas():
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=80)
    base, ours = draw.normal(size=80), [(labels + draw.normal(size=80)).tolist() for _ in range(2)]
    found, low, high = difference(labels, ours, base.tolist(), draws=200)
    expected = np.mean([roc_auc_score(labels, each) for each in ours]) - roc_auc_score(labels, base)
    assert abs(found - expected) < 1e-12
    assert low < found < high
    assert difference(labels, [base.tolist()], base.tolist(), draws=50) == [0.0, 0.0, 0.0]


def test_a_view_has_consecutive_slices_in_either_direction():
    x = torch.arange(16.0)[None, :, None].expand(40, -1, 3)
    seen = view(x, torch.Generator().manual_seed(0)).round()
    steps = seen.diff(dim=1)
    assert seen.shape == (40, 12, 3)
    assert ((steps == 1).all((1, 2)) | (steps == -1).all((1, 2))).all()
    assert {float(each) for each in steps.flatten()} == {-1.0, 1.0}


def test_components_of_the_training_slices():
    x = {part: torch.randn(number, 4, 80) for part, number in (('train', 60), ('val', 5))}
    few = reduced(x)
    flat = few['train'].flatten(0, 1)
    product = flat.T @ flat / len(flat)
    assert few['val'].shape == (5, 4, 64)
    torch.testing.assert_close(product, product.diagonal().diag(), atol=1e-4, rtol=0)
    torch.testing.assert_close(product.diagonal().mean(), torch.tensor(1.0))
