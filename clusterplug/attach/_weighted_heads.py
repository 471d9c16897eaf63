# SPDX-License-Identifier: Apache-2.0
"""Heads and losses of mmdet3d whose terms are weighted sample by sample: subclasses that a built head is turned into.

Each of them multiplies the weights of the targets (or of the rows of a loss) and leaves every normalizer alone, so that
with weights of 1 all numbers are those of the head as it was.
"""

import functools
import inspect

import torch
from torch import Tensor, nn

from clusterplug.core.numerics import no_autocast


class Weighted:
    """Base: where the weights of the batch come from."""

    def _weights(self, count: int) -> Tensor | None:
        """Weights (count,) of the samples of this step; None outside of a training step."""
        return self._sample_weighting[0].weights_of_batch(count, type(self).__name__)


class WeightedModel:
    """The model itself, whose ``loss`` may be called past ``forward``, as trainers of a teacher and a student do."""

    def loss(self, *args, **kwargs):
        weighting = self.sample_weighting
        through_forward = weighting.current is not None
        if not through_forward:
            samples = [kwargs[name] for name in ('batch_data_samples', 'data_samples') if name in kwargs]
            weighting.begin(self, samples[0] if samples else args[1] if len(args) > 1 else None)
        try:
            output = super().loss(*args, **kwargs)
        except BaseException:
            weighting.current = None
            raise
        return output if through_forward else weighting.end(output)


class WeightedAnchors(Weighted):
    """Heads that make targets by ``anchor_target_3d``: SECOND, PointPillars, Part-A2's and PV-RCNN's proposals."""

    def anchor_target_3d(self, anchor_list, batch_gt_instances_3d, *args, **kwargs):
        found = super().anchor_target_3d(anchor_list, batch_gt_instances_3d, *args, **kwargs)
        weights = self._weights(len(batch_gt_instances_3d))
        if found is None or weights is None:
            return found
        labels, label_weights, boxes, box_weights, directions, direction_weights, *numbers = found
        levels = [[_times(level, weights) for level in levels] for levels in (label_weights, box_weights)]
        direction_weights = [_times(level, weights) for level in direction_weights]
        return labels, levels[0], boxes, levels[1], directions, direction_weights, *numbers


class WeightedRois(Weighted):
    """Box heads of a second stage, whose rows are regions with the number of their sample."""

    def loss(
        self, cls_score, bbox_pred, rois, labels, bbox_targets, pos_gt_bboxes, reg_mask, label_weights, bbox_weights
    ):
        weights = self._weights(self._sample_weighting[0].batch_size)
        rows = None if weights is None else weights[rois[:, 0].long()]
        if rows is not None:
            label_weights, bbox_weights = _times(label_weights, rows), _times(bbox_weights, rows)
        self._corner_weights = None if rows is None else rows[reg_mask > 0]
        try:
            return super().loss(
                cls_score, bbox_pred, rois, labels, bbox_targets, pos_gt_bboxes, reg_mask, label_weights, bbox_weights
            )
        finally:
            self._corner_weights = None

    def get_corner_loss_lidar(self, *args, **kwargs):
        found = super().get_corner_loss_lidar(*args, **kwargs)
        return found if self._corner_weights is None else found * self._corner_weights


class WeightedSegments(Weighted):
    """Heads that label points (B, classes, N) or the voxels of all scans in a row."""

    def loss_by_feat(self, seg_logit, batch_data_samples):
        weights = self._weights(len(batch_data_samples))
        losses = [each for each in self.children() if isinstance(each, WeightedRows)]
        if weights is not None:
            logits = getattr(seg_logit, 'features', seg_logit)
            if logits.dim() == 3:
                rows = weights[:, None].expand(logits.shape[0], logits.shape[2])
            else:
                sizes = [len(sample.gt_pts_seg.voxel_semantic_mask) for sample in batch_data_samples]
                rows = weights.repeat_interleave(torch.tensor(sizes, device=weights.device), output_size=sum(sizes))
            for loss in losses:
                loss.row_weights = rows
        try:
            return super().loss_by_feat(seg_logit, batch_data_samples)
        finally:
            for loss in losses:
                loss.row_weights = None


class WeightedEvenRows(Weighted):
    """A loss whose rows are those of the samples one behind the other, as many of each."""

    def forward(self, pred, target, *args, weight=None, **kwargs):
        if args:  # after prediction and target the losses of mmdet take the weight
            (weight, *args) = args
        sample_weights = self._weights(self._sample_weighting[0].batch_size)
        if sample_weights is not None:
            if len(pred) % len(sample_weights):
                raise ValueError(
                    f'{type(self).__name__} got {len(pred)} rows of {len(sample_weights)} samples, which cannot be '
                    f"as many of each; use mode='batch_mean' or a batch of one sample"
                )
            rows = sample_weights.repeat_interleave(len(pred) // len(sample_weights))
            rows = rows.view(-1, *[1] * (pred.dim() - 1)) if weight is None else rows
            weight = rows if weight is None else _times(weight, rows)
            if pred.dim() == 2 and target.dim() == 1:
                weight = weight.flatten()
        return super().forward(pred, target, *args, weight=weight, **kwargs)


class WeightedRows(Weighted):
    """A loss of points or voxels; the head tells the weight of each row."""

    row_weights: Tensor | None = None

    def forward(self, pred, target, weight=None, **kwargs):
        if self.row_weights is not None:
            weight = self.row_weights if weight is None else weight * self.row_weights
        return super().forward(pred, target, weight=weight, **kwargs)


class WeightedLovasz(WeightedRows):
    """The Lovasz loss with the contribution of each row, its error times its share of the Jaccard index, weighted."""

    def forward(self, cls_score, label, weight=None, ignore_index=255, **kwargs):
        if self.row_weights is None:
            return super(WeightedRows, self).forward(cls_score, label, ignore_index=ignore_index, **kwargs)
        class_weight = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
        probs = cls_score.softmax(1)
        return self.loss_weight * weighted_lovasz(
            probs, label, self.row_weights, self.classes, class_weight, ignore_index
        )


def weighted_lovasz(probs, labels, weights, classes='present', class_weight=None, ignore_index=255) -> Tensor:
    """mmdet3d's Lovasz-Softmax loss (Berman et al., CVPR 2018), operation by operation, with a factor for each row.

    Args:
        probs: (N, C). labels: (N,). weights: (N,).
        classes: ``'present'``, ``'all'`` or a list. class_weight: (C,) or None. ignore_index: label, or None.
    """
    from mmdet3d.models.losses.lovasz_loss import flatten_probs, lovasz_grad

    if ignore_index is not None:
        weights = weights[labels != ignore_index]
    probs, labels = flatten_probs(probs, labels, ignore_index)
    if probs.numel() == 0:
        return probs.sum() * 0.0
    losses = []
    for c in range(probs.size(1)) if classes in ('all', 'present') else classes:
        foreground = (labels == c).float()
        if classes == 'present' and foreground.sum() == 0:
            continue
        errors = (foreground - probs[:, c]).abs()
        errors, order = torch.sort(errors, 0, descending=True)
        loss = torch.dot(errors, lovasz_grad(foreground[order]) * weights[order])
        losses.append(loss if class_weight is None else loss * class_weight[c])
    return torch.stack(losses).mean()


def _times(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` (B, ...) times ``weights`` (B,), in the type of the values."""
    with no_autocast(values):
        return values * weights.to(values.dtype).view(-1, *[1] * (values.dim() - 1))


def holders_of_losses(model: nn.Module) -> dict[str, nn.Module]:
    """The modules inside of a model that have a loss among their children, by name."""
    found = {}
    for name, module in model.named_modules():
        if module is model or name.split('.')[0] == 'clustering':  # a clustering loss is one of the batch, not a sample
            continue
        if any('loss' in child_name for child_name, _ in module.named_children()):
            found[name] = module
    return found


def weighted_form(head: nn.Module) -> type | None:
    """The form of a head that weights its samples; None where none is known."""
    from mmdet3d.models import dense_heads
    from mmdet3d.models.decode_heads import Cylinder3DHead
    from mmdet3d.models.decode_heads.decode_head import Base3DDecodeHead
    from mmdet3d.models.roi_heads.bbox_heads import PartA2BboxHead, PointRCNNBboxHead, PVRCNNBBoxHead
    from mmdet3d.models.roi_heads.mask_heads import ForegroundSegmentationHead

    if isinstance(head, dense_heads.FreeAnchor3DHead):
        return None
    if isinstance(head, (Base3DDecodeHead, Cylinder3DHead)):
        return WeightedSegments
    if hasattr(head, 'anchor_target_3d'):
        return WeightedAnchors
    if isinstance(head, (PartA2BboxHead, PVRCNNBBoxHead, PointRCNNBboxHead)):
        return WeightedRois
    if isinstance(head, (dense_heads.CenterHead, dense_heads.PointRPNHead, ForegroundSegmentationHead)):
        return WeightedEvenRows
    return None


def turn(head: nn.Module, form: type, weighting: nn.Module) -> None:
    """Turn a head, and the losses that it holds where the form needs it, into their weighted forms."""
    if form in (WeightedEvenRows, WeightedSegments):
        rows = WeightedEvenRows if form is WeightedEvenRows else WeightedRows
        for name, loss in head.named_children():
            if 'loss' not in name:
                continue
            lovasz = type(loss).__name__ == 'LovaszLoss'
            if lovasz:
                _check_lovasz(loss)
            elif 'weight' not in inspect.signature(type(loss).forward).parameters:
                raise ValueError(
                    f"the loss {type(loss).__name__} of {type(head).__name__} takes no weights; use mode='batch_mean', "
                    f'or another loss'
                )
            _turn(loss, WeightedLovasz if lovasz else rows, weighting)
    if form is not WeightedEvenRows:
        _turn(head, form, weighting)


def _check_lovasz(loss: nn.Module) -> None:
    if loss.per_sample or loss.cls_criterion.__name__ != 'lovasz_softmax':
        raise ValueError(
            "the Lovasz loss is weighted with loss_type='multi_class' and per_sample=False only; use mode='batch_mean'"
        )


def _turn(module: nn.Module, form: type, weighting: nn.Module) -> None:
    if isinstance(module, Weighted):
        raise ValueError(f'{type(module).__name__} is weighted already; wrap the model once')
    module.__class__ = _subclass(form, type(module))
    # in a list, so that it is no submodule of the head, and copied with the model
    module.__dict__['_sample_weighting'] = [weighting]


def turn_model(model: nn.Module) -> None:
    """Turn a model that has a ``loss`` into its form that weights also where that is called past ``forward``."""
    if callable(getattr(type(model), 'loss', None)):
        model.__class__ = _subclass(WeightedModel, type(model))


@functools.cache
def _subclass(form: type, kind: type) -> type:
    own = {'__module__': kind.__module__, '__doc__': kind.__doc__, '_weighted_of': (form, kind)}
    return type(kind.__name__, (form, kind), {**own, '__reduce_ex__': _reduce})


def _reduce(module: nn.Module, protocol: int):
    # The subclass is not found under its name; copies and pickles make it again.
    form, kind = type(module)._weighted_of
    return _rebuild, (form, kind), kind.__reduce_ex__(module, protocol)[2]


def _rebuild(form: type, kind: type) -> nn.Module:
    own = _subclass(form, kind)
    return own.__new__(own)
