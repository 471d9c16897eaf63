# SPDX-License-Identifier: Apache-2.0
"""A backbone of a mm config that runs on fewer tokens from the moment it is built, for uses without a Runner."""

from torch import nn

from clusterplug.patch.application import apply
from clusterplug.registry import MODELS


@MODELS.register_module()
def TokenClusteringViT(backbone: dict, method: str = 'expedit', **options) -> nn.Module:
    """Build a backbone and apply token reduction to it.

    For what :class:`clusterplug.hooks.token_clustering.TokenClusteringHook` does not reach: inference functions,
    export, evaluation outside a Runner. What comes out is the backbone itself, with its own ``state_dict``.

    Args:
        backbone: Config of a ViT or Swin, with the scope of its package (``type='mmseg.VisionTransformer'``).
        method: ``'expedit'``, ``'tome'`` or ``'average'``. Defaults to ``'expedit'``.
        **options: As :func:`clusterplug.patch.apply`; ``grid`` may be a list.

    Returns:
        Module: The patched backbone.

    Raises:
        ValueError: It is no transformer that is known, or a setting is out of range.

    Example:
        ``backbone=dict(type='clusterplug.TokenClusteringViT', backbone=dict(type='mmdet.SwinTransformer'), start=6)``
    """
    if options.get('grid') is not None:
        options['grid'] = tuple(options['grid'])
    return apply(MODELS.build(backbone), method, **options)
