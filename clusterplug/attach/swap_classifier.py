# SPDX-License-Identifier: Apache-2.0
"""Another last layer for the classes of a segmentor or detector that exists, by one line or by config."""

import warnings

from torch import nn

from clusterplug.registry import MODELS

__all__ = ['classification_layers', 'swap_classifier']

# last part of the name of what predicts classes, in mmdet3d, mmdet and mmsegmentation
_NAMES = ('conv_seg', 'conv_cls', 'cls_layers', 'heatmap', 'classifier', 'cls_head', 'fc_cls')


def classification_layers(model: nn.Module) -> list[str]:
    """Return the names of the last layers that predict classes: all branches of a segmentor or detector.

    Those are ``conv_seg`` of every decode head (MinkUNet, SPVCNN, Cylinder3D, PointNet++, DGCNN, PAConv), ``conv_cls``
    of dense heads (anchors, VoteNet, H3DNet, GroupFree3D, 3DSSD, FCOS3D, ...), the last of ``cls_layers`` (PointRCNN)
    and of each task's ``heatmap`` (CenterPoint), and of second stages those with more than one output (one output is a
    confidence and no class).
    """
    found = []
    for name, module in model.named_modules():
        if name.rsplit('.', 1)[-1] not in _NAMES:
            continue
        inside = [
            each for each, layer in module.named_modules() if next(layer.parameters(recurse=False), None) is not None
        ]
        last = '.'.join(filter(None, (name, inside[-1]))) if inside else name
        sides = _sides(model.get_submodule(last))  # of a head that was swapped already: None
        if sides and not ('roi_head' in name and sides[1] == 1):
            found.append(last)
    return found


@MODELS.register_module(name=['SwapClassifier', 'swap_classifier'])
def swap_classifier(model: nn.Module | dict, head: dict, layer: str | list[str] | None = None) -> nn.Module:
    """Replace the last layer of every classification branch by a head that is built for its widths.

    The model keeps its class, its losses and its predictions; the new layer has the name of the old one, so a
    checkpoint of the old model loads except for it. Of convolutions over several positions the new layer is the one at
    the center (a class is a subspace of the features of a position), which is warned of.

    Args:
        model: An mmdet3d (or mmdet, mmsegmentation) segmentor or detector, or its config.
        head: Config of the head without the widths, such as ``dict(type='clusterplug.GrassmannHead', subspace_dim=8)``;
            it gets ``in_channels``, ``num_classes`` (the outputs of the layer), for a convolution
            ``channels_first=True``, and where the loss is no softmax over classes ``bias=True``, with the bias of the
            old layer.
        layer: Name or names of the layers to replace, as in ``model.named_modules()``; None =
            :func:`classification_layers`.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: No such layer, or one that is no linear layer or convolution; a head that was swapped already;
            widths that the head refuses.

    Building from a config switches on :mod:`clusterplug.compat`, workarounds for faults of the host packages, in the
    whole process, with a line in the log; a model that is given as a module switches nothing on.

    Example:
        In a config, after ``_base_``::

            model = dict(
                _delete_=True,
                type='clusterplug.SwapClassifier',
                model=_base_.model,
                head=dict(type='clusterplug.GrassmannHead', subspace_dim=8),
            )
            optim_wrapper = dict(
                constructor='clusterplug.GrassmannOptimWrapperConstructor',
                optimizer=dict(_delete_=True, type='clusterplug.RiemannianSGD', lr=0.1, momentum=0.9),
            )
    """
    if not isinstance(head, dict) or 'type' not in head:
        raise TypeError(f'head must be a config with a type, got {type(head).__name__}')
    if isinstance(model, dict):
        from clusterplug import compat

        with compat.switched_on():
            model = MODELS.build(model)
    names = classification_layers(model) if layer is None else [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise ValueError(
            f'{type(model).__name__} has no classification layer that is known ({", ".join(_NAMES)}); name it in layer'
        )
    for name in names:
        _swap(model, name, dict(head))
    return model


def _swap(model: nn.Module, name: str, head: dict) -> None:
    layers = dict(model.named_modules())
    old = layers.get(name)
    widths = None if old is None else _sides(old)
    if widths is None:
        kind = 'none' if old is None else f'a {type(old).__name__}'
        raise ValueError(
            f"layer must name a linear layer or a convolution, got '{name}', {kind}; classification layers of "
            f'{type(model).__name__}: {", ".join(classification_layers(model)) or "none found"}'
        )
    in_channels, num_classes = widths
    if any(size > 1 for size in _kernel(old)):
        warnings.warn(
            f"the layer '{name}' looked at {'x'.join(map(str, _kernel(old)))} positions; the new one looks at one",
            stacklevel=3,
        )
    options = dict(head, in_channels=in_channels, num_classes=num_classes)
    if _is_dense_convolution(old):
        options.setdefault('channels_first', True)
    if not _is_softmax_head(layers, name):
        options.setdefault('bias', True)
    new = MODELS.build(options)
    bias = getattr(old, 'bias', None)
    if options.get('bias') is True and bias is not None and getattr(new, 'bias', None) is not None:
        new.bias.data.copy_(bias.data)
    weight = next(old.parameters())
    new = new.to(weight.device).train(old.training)
    parent, _, last = name.rpartition('.')
    setattr(layers[parent], last, new)


def _sides(layer: nn.Module) -> tuple[int, int] | None:
    """Widths of what goes into and comes out of a linear layer or a convolution, None for all other modules."""
    if not hasattr(layer, 'weight') or list(layer.children()):
        return None
    for names in (('in_features', 'out_features'), ('in_channels', 'out_channels')):
        sides = tuple(getattr(layer, each, None) for each in names)
        if all(isinstance(each, int) for each in sides):
            return None if getattr(layer, 'groups', 1) != 1 else sides
    return None


def _kernel(layer: nn.Module) -> tuple[int, ...]:
    size = getattr(layer, 'kernel_size', 1)
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)


def _is_dense_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd)


def _is_softmax_head(layers: dict[str, nn.Module], name: str) -> bool:
    """Whether the layer is of a segmentor's head whose loss is a softmax over its outputs."""
    while name:
        name = name.rpartition('.')[0]
        losses = [getattr(layers[name], each, None) for each in ('loss_decode', 'loss_ce')]
        losses = [each for each in losses if each is not None]
        if losses:
            return not any(getattr(each, 'use_sigmoid', False) for each in losses)
    return False
