# SPDX-License-Identifier: Apache-2.0
"""A clustering loss next to the loss that a model has, by config alone."""

import warnings
from contextlib import contextmanager

import torch
from torch import nn

from clusterplug.attach.alignment import align, grid_cells, stacked_labels
from clusterplug.attach.box_labels import KINDS, BoxLabels
from clusterplug.attach.hosts import default_classifier, default_tap, fine_grid, is_detector
from clusterplug.attach.regions import (
    cell_regions,
    image_regions,
    image_rows,
    instance_regions,
    label_positions,
    stacked_instances,
)
from clusterplug.attach.taps import Rows, Tap
from clusterplug.registry import MODELS


class ClusteringBranch(nn.Module):
    """The part that :func:`WithClustering` adds to a model as ``model.clustering``; idle outside training."""

    def __init__(self, model: nn.Module, embedding: str, predictions: str | None, labels: str, loss: nn.Module | dict):
        super().__init__()
        self.embedding = Tap(model, embedding)
        self.predictions = Tap(model, predictions) if predictions else None
        self.labels = labels
        self.boxes = BoxLabels(model, labels) if labels in KINDS else None
        self.grid = fine_grid(model)
        if isinstance(loss, dict):
            # so that the model is initialized and trained from the same random numbers as without the loss
            with torch.random.fork_rng(devices=[]):
                loss = MODELS.build(_complete(loss, model, self.embedding, self.boxes))
        self.loss = loss
        # Cylinder3D has an output for ignored points besides, which is no class to the loss
        outputs = getattr(getattr(model, 'decode_head', None), 'num_classes', None)
        self.extra_output = outputs is not None and getattr(loss, 'num_classes', outputs) == outputs - 1
        self.running = self.watching = self.called_otherwise = self.warned = self.warned_of_calls = False
        self.enabled = True  # False: the model trains as if it had no clustering loss, to measure what it costs

    @contextmanager
    def watch(self):
        """Keep the embedding of any call of the model, not only of training steps; read it with ``embedding.take``."""
        before = self.watching
        self.watching = True
        try:
            yield
        finally:
            self.watching = before
            if not before:
                self.embedding.close()

    def before(self, model, args, kwargs):
        """Forward pre-hook of the model: open the taps in a training step."""
        mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
        self.running = self.enabled and self.training and mode == 'loss'
        self.called_otherwise = self.enabled and self.training and mode is None and torch.is_grad_enabled()
        self.embedding.open, self.embedding.value = self.running or self.watching, None
        if self.predictions is not None:
            self.predictions.open, self.predictions.value = self.running, None
        if self.boxes is not None and self.running:  # now, as some detectors replace the boxes in their samples
            self.boxes.read(kwargs.get('data_samples', args[1] if len(args) > 1 else None))

    def after(self, model, args, kwargs, losses):
        """Forward hook of the model: add the clustering terms to its losses; also called where the model failed."""
        if losses is None:
            self._drop()
            return None
        if not self.running:
            if self.called_otherwise and _is_loss(losses):
                raise ValueError(
                    f'{type(model).__name__} returned a loss without being called as model(inputs, data_samples, '
                    f"mode='loss'), so the clustering loss cannot find labels and was not computed. Call it that way, "
                    f'or add the loss yourself: clusterplug.losses.PointClusterLoss()(features, labels, logits)'
                )
            if self.called_otherwise and not self.watching and not self.warned_of_calls and _has_gradient(losses):
                self.warned_of_calls = True
                warnings.warn(
                    f"{type(model).__name__} was called in training without mode='loss', so that the clustering loss "
                    f'was not computed. Where a loop of your own computes the losses from the output, let it read the '
                    f'feature as well: with model.clustering.watch(): output = model(...); features = '
                    f'model.clustering.embedding.take().features; loss += sum(model.clustering.loss(features, labels, '
                    f'output).values())',
                    stacklevel=3,
                )
            return None
        inputs = kwargs.get('inputs', args[0] if args else None)
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
        try:
            terms = self._terms(inputs, samples)
        finally:
            self._drop()
        if isinstance(losses, torch.Tensor):
            return losses + sum(terms.values())
        return {**losses, **terms}

    def _drop(self) -> None:
        """Let go of what a step has kept: after an error it would hold the memory of its graph until the next one."""
        self.running = False
        for tap in (self.embedding, self.predictions):
            if tap is not None:
                tap.close()
        self.embedding.open = self.watching

    def _terms(self, inputs, samples) -> dict:
        rows = self.embedding.take()
        if torch.is_grad_enabled() and not self.embedding.without_gradient and not rows.features.requires_grad:
            raise ValueError(
                f"the layer '{self.embedding.path}' gives features that need no gradient (frozen layers?), so that the "
                f'loss would train its projector alone; tap a layer behind a trained one, or leave the loss out'
            )
        if self.embedding.without_gradient and torch.is_grad_enabled():
            raise ValueError(
                f"the layer '{self.embedding.path}' gives features without gradient, so that the loss would train its "
                f'projector alone; inside activation checkpointing tap the layer that is checkpointed, or use '
                f'use_reentrant=False'
            )
        if self.boxes is not None:
            predicted = None if self.predictions is None else self.predictions.take().features
            target = self.boxes(rows, inputs, self.loss.ignore_index)
            regions = None
            if not self._by_point():
                regions = self._regions(target, self.boxes.place(), self.boxes.regions + 1)
            return self._loss(rows.features, target, predicted, regions=regions, cells=self._cells(rows, inputs))
        if rows.grid is not None:
            return self._image_terms(rows, samples)
        kinds = ('voxel', 'point') if self.labels == 'auto' else (self.labels,)
        labels = {kind: stacked_labels(samples, kind) for kind in kinds}
        labels = {kind: values for kind, values in labels.items() if values is not None}
        voxels = inputs.get('voxels') if isinstance(inputs, dict) else None
        # 'voxel_coors' is what Cylinder3D adds, which makes its voxels inside: its 'coors' are those of the points
        coords = voxels.get('voxel_coors', voxels.get('coors')) if isinstance(voxels, dict) else None
        kind, feature_rows = align(rows, labels, coords, self.embedding.path, self.grid)
        target, predicted = labels[kind], None
        if self.predictions is not None:
            predicted = self.predictions.take().features
            if self.extra_output:
                predicted = predicted.detach().argmax(1)
        if feature_rows is not None:
            # voxels that the coarse grid dropped have no feature
            target = torch.where(feature_rows >= 0, target, self.loss.ignore_index)
            feature_rows = feature_rows.clamp_min(0)
        regions = None
        if not self._by_point():
            place, instances = self._placed(kind, len(target), inputs, samples, coords)
            regions = self._regions(target, place, instances)
        return self._loss(rows.features, target, predicted, feature_rows, regions, self._cells(rows, inputs))

    def _loss(self, features, target, predicted, feature_rows=None, regions=None, cells=None) -> dict:
        """Call the loss; one of another kind may know nothing of regions and cells."""
        more = [regions, cells]
        while more and more[-1] is None:
            more.pop()
        return self.loss(features, target, predicted, feature_rows, *more)

    def _cells(self, rows: Rows, inputs):
        """Coordinates of the rows in their grid, where the loss asks for them."""
        if getattr(self.loss, 'positions', None) is None:
            return None
        cells = grid_cells(rows, inputs)
        if cells is None:
            raise ValueError(
                f"the layer '{self.embedding.path}' has no grid, as voxels and images have, so that its rows have no "
                f'position inside a cell; build the assigner without position_period'
            )
        return cells

    def _by_point(self) -> bool:
        return getattr(self.loss, 'regions', 'point') == 'point'

    def _regions(self, labels, place: tuple, instances):
        """Number of the region of each label, as the loss asks for it."""
        cells = cell_regions(labels, *place, self.loss.assigner.cell_size)
        return cells if self.loss.regions == 'cell' else instance_regions(cells, labels, instances, place[1])

    def _placed(self, kind: str, count: int, inputs, samples: list, coords) -> tuple:
        """Where the labels of a segmentor lie, (N, 3) and scan (N,), and what objects they belong to, if known."""
        place = label_positions(kind, count, inputs, coords)
        if place is None:
            raise ValueError(
                f'the inputs do not tell where the {count} {kind} labels lie, so that there are no cells; build '
                f"the loss with regions='point'"
            )
        instances = stacked_instances(samples, kind)
        if instances is None and self.loss.regions == 'instance' and not self.warned:
            self.warned = True
            warnings.warn(
                f'the {kind} labels have no instance ids (gt_pts_seg.pts_instance_mask: load and pack them with '
                f"dict(type='clusterplug.LoadInstances')); connected cells of {self.loss.assigner.cell_size:g} m are "
                f'used instead',
                stacklevel=2,
            )
        return place, instances

    def _image_terms(self, rows: Rows, samples: list) -> dict:
        """Terms of an image segmenter: its labels (B, H, W) at the pixels of the map."""
        masks = [getattr(getattr(sample, 'gt_sem_seg', None), 'data', None) for sample in samples or []]
        if not masks or any(mask is None for mask in masks):
            raise ValueError(
                f"the layer '{self.embedding.path}' gives a map {rows.grid}, which needs the labels of images: "
                f'data_samples with gt_sem_seg (B samples of (1, H, W))'
            )
        labels = image_rows(rows, torch.stack([mask.reshape(mask.shape[-2:]) for mask in masks]))
        if labels.numel() != len(rows.features):
            raise ValueError(f'{len(masks)} label images for a map of {len(rows.features)} pixels {rows.grid} each')
        predicted = None
        if self.predictions is not None:
            found = self.predictions.take()
            logits = found.features.detach()
            # one output for two classes, as mmsegmentation's binary heads have it
            classes = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
            if found.grid not in (None, rows.grid):
                classes = image_rows(rows, classes.view(len(masks), *found.grid)).flatten()
            predicted = classes if found.grid is not None else None
        regions = None if self._by_point() else image_regions(labels)
        cells = self._cells(rows, None)
        return self._loss(rows.features, labels.flatten(), predicted, regions=regions, cells=cells)


def _is_loss(value) -> bool:
    """Whether a model returned what a training step would go backward from."""
    if isinstance(value, dict):
        return any('loss' in str(name) and _is_loss(each) for name, each in value.items())
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.requires_grad


def _has_gradient(value) -> bool:
    """Whether a model returned something that a loop of one's own may go backward from."""
    if isinstance(value, (tuple, list)):
        return any(map(_has_gradient, value))
    if isinstance(value, dict):
        return any(map(_has_gradient, value.values()))
    return isinstance(value, torch.Tensor) and value.requires_grad


def _complete(loss: dict, model: nn.Module, tap: Tap, boxes: BoxLabels | None) -> dict:
    """The loss config with what the model knows: number of classes, ignored label, width of the feature."""
    head = getattr(model, 'decode_head', None)
    sizes = {name: getattr(head, name, None) for name in ('num_classes', 'ignore_index')}
    if None not in sizes.values() and sizes['ignore_index'] == sizes['num_classes'] - 1:
        sizes['num_classes'] -= 1  # Cylinder3D has an output for ignored points
    kind = 'decode'
    if boxes is not None:
        kind, sizes['num_classes'] = 'detection', boxes.num_classes
    loss = dict(loss)
    for name, known in sizes.items():
        if known is not None and loss.setdefault(name, known) != known:
            raise ValueError(
                f'{name} of the clustering loss is {loss[name]} but that of the {kind} head is {known}; leave it '
                f"out of the loss to take the head's"
            )
    if 'num_classes' not in loss:
        raise ValueError(
            f'num_classes must be given in the loss: {type(model).__name__} has no decode_head that tells it'
        )
    if 'projector' not in loss and loss.get('in_channels') is None:
        if tap.channels is None:
            raise ValueError(f"in_channels must be given in the loss: the layer '{tap.path}' does not tell its width")
        loss['in_channels'] = tap.channels
    return loss


def _build(config: dict) -> nn.Module:
    """Build the host with the workarounds for faults of its packages."""
    from clusterplug import compat

    with compat.switched_on():
        return MODELS.build(config)


@MODELS.register_module()
def WithClustering(
    model: dict | nn.Module,
    loss: dict | nn.Module,
    embedding: str = 'auto',
    predictions: str | None = 'auto',
    labels: str = 'auto',
) -> nn.Module:
    """Build a model with a clustering loss next to its own.

    The model keeps its class, the names in its ``state_dict``, its predictions and its cost at test time. The loss and
    its projector become the submodule ``clustering``, so they are trained, saved, resumed and wrapped for several GPUs
    with it. In a training step the loss reads a feature inside the model and adds its terms to the losses.

    Args:
        model: config (or module) of an mmdet3d segmentor or detector, of an mmsegmentation segmenter, or of any model
            called as ``model(inputs, data_samples, mode='loss')`` that returns its losses as a dict or a tensor.
        loss: config (or module) of the loss; ``num_classes``, ``ignore_index`` and ``in_channels`` are taken from the
            model where they are left out.
        embedding: the feature, ``'layer'`` for the output and ``'layer:input'`` for the input of a layer of
            ``model.named_modules()``. Its rows must be those of the labels (points or voxels), or it must be an spconv
            tensor of any stride (a label goes with the coarse voxel that contains its voxel), or the map of an image
            segmenter (B, C, H, W) of any size (with the labels at the middle of its pixels). ``'auto'``: what goes
            into the classifier, before dropout; for SPVCNN the point features of the deepest stage.
        predictions: likewise the layer whose output are the logits, for the choice of hard anchors; ``'auto'``: the
            classifier; None: all anchors count as easy.
        labels: ``'voxel'``, ``'point'``, or ``'auto'``: the one with as many rows as the feature. For a detector
            ``'auto'`` is ``'boxes'``: the class of the ground-truth box that contains the point, key point or voxel,
            the rest ignored; ``'boxes+background'``: the rest is one more class, the last
            (:class:`~clusterplug.attach.BoxLabels`).

    Returns:
        The model.

    Raises:
        ValueError: no such layer (near matches are listed); features and labels that cannot be aligned; numbers of
            classes that do not match; in a training step also features without gradient, or a loss that was asked for
            in another way than ``mode='loss'``.

    Building from a config switches on :mod:`clusterplug.compat`, workarounds for faults of the host packages, in the
    whole process, with a line in the log (``clusterplug.compat.remove_all()`` takes them back); a build that fails
    leaves none behind, and a model that is given as a module switches nothing on.

    Example:
        In a config, after ``_base_``::

            model = dict(
                _delete_=True,
                type='clusterplug.WithClustering',
                model=_base_.model,
                loss=dict(type='clusterplug.PointClusterLoss'),
            )
    """
    if isinstance(model, dict):
        model = _build(model)
    if hasattr(model, 'clustering'):
        raise ValueError(f'the model {type(model).__name__} has a clustering loss already; wrap it once')
    if labels not in ('auto', 'voxel', 'point', *KINDS):
        raise ValueError(
            f"labels must be 'auto', 'voxel' or 'point', got {labels!r}; for detectors also 'boxes', 'boxes+background'"
        )
    if labels == 'auto' and is_detector(model):
        labels = 'boxes'
    classifier = default_classifier(model)
    if embedding == 'auto':
        embedding = default_tap(model)
    branch = ClusteringBranch(model, embedding, classifier if predictions == 'auto' else predictions, labels, loss)
    model.clustering = branch
    model.register_forward_pre_hook(branch.before, with_kwargs=True)
    model.register_forward_hook(branch.after, with_kwargs=True, always_call=True)
    return model
