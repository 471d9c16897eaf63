"""A clustering loss beside the loss that a model has, by config alone."""

from contextlib import contextmanager

import torch
from torch import nn

from clusterplug.detectors.box_labels import KINDS, BoxLabels, is_detector
from clusterplug.registry import MODELS
from clusterplug.segmentors.alignment import align, fine_grid, stacked_labels
from clusterplug.segmentors.taps import Tap, default_tap

_CLASSIFIERS = ('decode_head.conv_seg', 'decode_head.classifier')


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
            # so that the model is initialised and trained from the same random numbers as without the loss
            with torch.random.fork_rng(devices=[]):
                loss = MODELS.build(_complete(loss, model, self.embedding, self.boxes))
        self.loss = loss
        # Cylinder3D has an output for ignored points besides, which is no class to the loss
        outputs = getattr(getattr(model, 'decode_head', None), 'num_classes', None)
        self.extra_output = outputs is not None and getattr(loss, 'num_classes', outputs) == outputs - 1
        self.running = self.watching = False
        self.enabled = True  # False: the model trains as if it had no clustering loss, to measure what it costs

    @contextmanager
    def watch(self):
        """Keep the embedding of any call of the model, not only of training steps; read it with ``embedding.take``."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = self.embedding.open = False

    def before(self, model, args, kwargs):
        """Forward pre-hook of the model: open the taps in a training step."""
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        self.running = self.enabled and self.training and mode == 'loss'
        self.embedding.open, self.embedding.value = self.running or self.watching, None
        if self.predictions is not None:
            self.predictions.open, self.predictions.value = self.running, None
        if self.boxes is not None and self.running:  # now, as some detectors replace the boxes in their samples
            self.boxes.read(kwargs.get('data_samples', args[1] if len(args) > 1 else None))

    def after(self, model, args, kwargs, losses):
        """Forward hook of the model: add the clustering terms to its losses."""
        if not self.running:
            return None
        self.running = self.embedding.open = False
        if self.predictions is not None:
            self.predictions.open = False
        inputs = kwargs.get('inputs', args[0] if args else None)
        samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
        return {**losses, **self._terms(inputs, samples)}

    def _terms(self, inputs, samples) -> dict:
        rows = self.embedding.take()
        if self.embedding.without_gradient and torch.is_grad_enabled():
            raise ValueError(
                f"the layer '{self.embedding.path}' gives features without gradient, so that the loss would train its "
                f'projector alone; inside activation checkpointing tap the layer that is checkpointed, or use '
                f'use_reentrant=False'
            )
        if self.boxes is not None:
            predicted = None if self.predictions is None else self.predictions.take().features
            target = self.boxes(rows, inputs, self.loss.ignore_index)
            return self.loss(rows.features, target, predicted)
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
        return self.loss(rows.features, target, predicted, feature_rows)


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


def _classifier(model: nn.Module) -> str | None:
    names = dict(model.named_modules())
    return next((name for name in _CLASSIFIERS if name in names), None)


@MODELS.register_module()
def WithClustering(
    model: dict | nn.Module,
    loss: dict | nn.Module,
    embedding: str = 'auto',
    predictions: str | None = 'auto',
    labels: str = 'auto',
) -> nn.Module:
    """Build a model with a clustering loss beside its own.

    The model keeps its class, the names in its ``state_dict``, its predictions and its cost at test time. The loss and
    its projector become the submodule ``clustering``, so they are trained, saved, resumed and wrapped for several GPUs
    with it. In a training step the loss reads a feature inside the model and adds its terms to the losses.

    Args:
        model: config (or module) of an mmdet3d segmentor, or of any model called as ``model(inputs, data_samples,
            mode='loss')`` that returns a dict of losses.
        loss: config (or module) of the loss; ``num_classes``, ``ignore_index`` and ``in_channels`` are taken from the
            model where they are left out.
        embedding: the feature, ``'layer'`` for the output and ``'layer:input'`` for the input of a layer of
            ``model.named_modules()``. Its rows must be those of the labels (points or voxels), or it must be an spconv
            tensor of any stride: then a label goes with the coarse voxel that contains its voxel. ``'auto'``: what goes
            into the classifier, before dropout; for SPVCNN the point features of the deepest stage.
        predictions: likewise the layer whose output are the logits, for the choice of hard anchors; ``'auto'``: the
            classifier; None: all anchors count as easy.
        labels: ``'voxel'``, ``'point'``, or ``'auto'``: the one with as many rows as the feature. For a detector
            ``'auto'`` is ``'boxes'``: the class of the ground-truth box that contains the point, key point or voxel,
            the rest ignored; ``'boxes+background'``: the rest is one more class, the last
            (:class:`~clusterplug.detectors.BoxLabels`).

    Returns:
        The model.

    Raises:
        ValueError: no such layer (near matches are listed); features and labels that cannot be aligned; numbers of
            classes that do not match.

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
        from clusterplug import compat

        compat.apply_all()
        model = MODELS.build(model)
    if hasattr(model, 'clustering'):
        raise ValueError(f'the model {type(model).__name__} has a clustering loss already; wrap it once')
    if labels not in ('auto', 'voxel', 'point', *KINDS):
        raise ValueError(
            f"labels must be 'auto', 'voxel' or 'point', got {labels!r}; for detectors also 'boxes', 'boxes+background'"
        )
    if labels == 'auto' and is_detector(model):
        labels = 'boxes'
    classifier = _classifier(model)
    if embedding == 'auto':
        embedding = default_tap(model)
    branch = ClusteringBranch(model, embedding, classifier if predictions == 'auto' else predictions, labels, loss)
    model.clustering = branch
    model.register_forward_pre_hook(branch.before, with_kwargs=True)
    model.register_forward_hook(branch.after, with_kwargs=True)
    return model
