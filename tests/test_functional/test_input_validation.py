# SPDX-License-Identifier: Apache-2.0
"""Kernels that a loss is made of refuse what does not fit, with names and what came."""

import pytest
import torch
import torch.nn.functional as F

from clusterplug import functional as f

X, IDS = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
EMPTY = torch.zeros(2, 3, dtype=torch.bool)
UNITS, VALID = F.normalize(torch.randn(1, 8, 4), dim=-1), torch.arange(8)[None] < 7


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: f.bank_contrast_terms(X, IDS, torch.randn(2, 3, 5), EMPTY, temperature=0.1), r'bank.*\(2, 3, 5\)'),
        (lambda: f.bank_contrast_terms(X, IDS, torch.randn(2, 3, 4), EMPTY, temperature=0.0), 'temperature.*0.0'),
        (lambda: f.bank_contrast_terms(X, IDS, torch.randn(2, 3, 4), EMPTY[:1], temperature=0.1), 'empty'),
        (lambda: f.bank_contrast_terms(X, IDS.float(), torch.randn(2, 3, 4), EMPTY, temperature=0.1), 'ids.*integer'),
        (lambda: f.subclass_contrast_terms(X, IDS[:3], X, IDS, IDS > 0, temperature=0.1), r'anchor_ids.*\(3,\)'),
        (lambda: f.subclass_contrast_terms(X, IDS, X[:, :2], IDS, IDS > 0, temperature=0.1), 'keys.*4, got 2'),
        (lambda: f.subclass_contrast_terms(X, IDS, X, IDS, IDS, temperature=0.1), 'no_key'),
        (lambda: f.sample_anchors(IDS + 9, None, num_classes=2, num_anchors_per_class=2), 'labels.*got 9 to 9'),
        (lambda: f.sample_anchors(IDS - 2, None, num_classes=2, num_anchors_per_class=2), 'labels.*got -2 to -2'),
        (lambda: f.sample_anchors(IDS.float(), None, num_classes=2, num_anchors_per_class=2), 'labels.*integer'),
        (lambda: f.sample_anchors(IDS, IDS[:2], num_classes=2, num_anchors_per_class=2), 'predictions'),
        (lambda: f.sample_anchors(IDS, None, num_classes=2, num_anchors_per_class=2, num_slots=1), 'num_slots'),
        (lambda: f.cluster_points(X[:, None], X[:, None], None), 'cells.*NoneType'),
        (lambda: f.cluster_points(X[:, None], X[:, None], f.point_cells(torch.zeros(4, 4).long())), '4'),
        (
            lambda: f.assign_subclasses(UNITS, UNITS[:, :3], valid=VALID | True, num_active=torch.tensor([2])),
            'last slot',
        ),
        (lambda: f.assign_subclasses(UNITS, UNITS[:, :1], valid=VALID, num_active=torch.tensor([5])), 'num_active'),
        (lambda: f.assign_subclasses(UNITS, UNITS[:, :3], valid=VALID, num_active=torch.tensor([2.0])), 'num_active'),
        (
            lambda: f.assign_subclasses(UNITS, UNITS[:, :3], valid=VALID, num_active=torch.tensor([2]), epsilon=0.0),
            'epsilon',
        ),
        (
            lambda: f.assign_subclasses(
                UNITS, UNITS[:, :3], valid=VALID, num_active=torch.tensor([2]), sizes=torch.ones(1, 2)
            ),
            'sizes',
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
