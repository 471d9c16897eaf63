# SPDX-License-Identifier: Apache-2.0
"""Where the data samples of mmpretrain and mmdet3d keep labels and predictions."""

import torch
from torch import Tensor


def labels_and_predictions(sample: dict) -> tuple[Tensor, Tensor]:
    """The labels (N,) and predictions of a data sample of mmpretrain or mmdet3d."""
    if 'gt_label' in sample:
        predictions = sample.get('pred_label')
        if predictions is None:
            predictions = sample['pred_score'].reshape(1, -1)
        return torch.as_tensor(sample['gt_label']).reshape(-1), predictions
    annotations = sample.get('eval_ann_info') or sample.get('gt_pts_seg') or {}
    labels, predictions = annotations.get('pts_semantic_mask'), sample.get('pred_pts_seg')
    if labels is None or predictions is None:
        raise ValueError(
            f'a data sample needs gt_label and pred_label, or pts_semantic_mask and pred_pts_seg, got '
            f'{sorted(sample)}; evaluate a classifier or a segmentor'
        )
    return torch.as_tensor(labels).reshape(-1), torch.as_tensor(predictions['pts_semantic_mask']).reshape(-1)
