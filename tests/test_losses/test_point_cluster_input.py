# SPDX-License-Identifier: Apache-2.0
"""What PointClusterLoss refuses, and what it says."""

import pytest
import torch

from clusterplug.losses import PointClusterLoss

FEATURES, LABELS = torch.randn(20, 8), torch.arange(20) % 3


def _loss(**options):
    return PointClusterLoss(**{**dict(num_classes=3, in_channels=8, num_clusters=4, embed_dims=8), **options})


@pytest.mark.parametrize(
    ('label', 'ignore_index'),
    [(3, 255), (254, 255), (256, 255), (10**9, 255), (-1, 255), (4, 3), (-1, 3), (-2, -1), (3, -1), (-50, -100),
     (-101, -100)],
)  # fmt: skip
def test_labels_out_of_range(label, ignore_index):
    loss, labels = _loss(ignore_index=ignore_index), LABELS.clone()
    labels[[3, 8]] = label
    labels[0] = ignore_index
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    message = rf'labels must be 0 to 2 or ignore_index = {ignore_index}, got \[{label}\] in 2 points; check num_classes'
    with pytest.raises(ValueError, match=message):
        loss(FEATURES, labels)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ('inputs', 'error', 'message'),
    [
        ((FEATURES.long(), LABELS), TypeError, 'features must be a floating tensor'),
        ((FEATURES.numpy(), LABELS), TypeError, 'features must be a floating tensor.*got ndarray'),
        ((FEATURES, LABELS.float()), TypeError, r'labels must be an integer tensor.*labels.long\(\)'),
        ((FEATURES, LABELS > 0), TypeError, 'labels must be an integer tensor'),
        ((FEATURES, LABELS.tolist()), TypeError, 'labels must be an integer tensor.*got list'),
        ((FEATURES, LABELS[:10]), ValueError, 'same N'),
        ((FEATURES[None], LABELS), ValueError, r'\(N, in_channels\)'),
        ((FEATURES, LABELS[None]), ValueError, 'same N'),
        ((FEATURES[:, :5], LABELS), ValueError, 'in_channels = 8 columns, got 5'),
        ((FEATURES, LABELS, torch.randn(20, 4)), ValueError, 'num_classes is 3 but the predictions have 4 columns'),
        ((FEATURES, LABELS, LABELS[:5]), ValueError, r'predictions must be \(N,\) classes.*N = 20'),
        ((FEATURES, LABELS, torch.randn(19, 3)), ValueError, 'N = 20'),
        ((FEATURES, LABELS, LABELS.tolist()), TypeError, 'predictions must be a tensor'),
        ((FEATURES, LABELS, None, LABELS.float()), ValueError, 'feature_rows'),
        ((FEATURES, LABELS, None, LABELS[:7]), ValueError, 'feature_rows'),
        ((FEATURES, LABELS.to('meta')), ValueError, 'labels must be on the device of the features'),
    ],
)
def test_wrong_shapes_and_kinds(inputs, error, message):
    with pytest.raises(error, match=message):
        _loss()(*inputs)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(temperature=0), 'temperature'),
        (dict(momentum=1.1), 'momentum must be from 0 to 1, got 1.1'),
        (dict(momentum=float('nan')), 'momentum'),
        (dict(assigner=dict(epsilon=0)), 'epsilon must be a finite number >= 0.001'),
        (dict(assigner=dict(num_iters=0)), 'num_iters must be None or an int of at least 1, got 0'),
        (dict(assigner=dict(num_iters=2.5)), 'num_iters'),
        (dict(loss_weight=-1), 'loss_weight must be from 0'),
        (dict(contrast=dict(terms=('point', 'centre'))), r"terms must be some of \('queue', 'point', 'center'\)"),
        (dict(contrast=dict(terms='point')), 'terms must be some of'),
        (dict(contrast=dict(terms=())), 'terms must be some of'),
        (dict(num_anchors_per_class=0), 'num_anchors_per_class must be None or an int of at least 1'),
        (dict(contrast=dict(max_negatives=0)), 'max_negatives must be at least 1, got 0'),
        (dict(sampler=dict(max_anchors=1.5)), 'max_anchors must be None or an int'),
        (dict(ignore_index=True), 'ignore_index must be an int'),
        (dict(regions='object'), r"regions must be one of \('point', 'cell', 'instance'\), got 'object'"),
        (dict(assigner=dict(cell_size=0.0)), 'cell_size must be .*, got 0.0'),
        (dict(ignore_index=None), 'ignore_index must be an int'),
        (dict(ignore_index=255.0), 'ignore_index must be an int'),
        (dict(in_channels=None), 'in_channels must be given'),
        (dict(num_classes=0), 'num_classes must be an int of at least 1'),
        (dict(num_classes=None), 'num_classes must be an int of at least 1'),
        (dict(num_clusters=[4, 4]), '3 classes'),
        (dict(embed_dims=0), 'embed_dims'),
        (dict(queue_len=0), 'queue_len'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        _loss(**options)


def test_predictions_of_the_ignored_label_are_no_error():
    loss = _loss()
    loss(FEATURES, LABELS, torch.full((20,), 255))
    assert all(torch.isfinite(value) for value in loss(FEATURES, LABELS, torch.full((20,), -1)).values())
