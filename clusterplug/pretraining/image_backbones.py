# SPDX-License-Identifier: Apache-2.0
"""Image backbones of timm and torchvision by config, with the parameter names that they have there."""

from torch import nn

from clusterplug.registry import MODELS

# where torchvision's models keep their classifier
_CLASSIFIERS = ('fc', 'classifier', 'heads', 'head')


@MODELS.register_module()
def TimmBackbone(name: str, **options) -> nn.Module:
    """Build a timm model without its classifier: (N, 3, H, W) to pooled features (N, C).

    Args:
        name: name of the model in timm.
        **options: further options of ``timm.create_model``; ``pretrained=True`` downloads weights,
            ``dynamic_img_size=True`` lets a ViT see crops of several sizes.

    Raises:
        ModuleNotFoundError: timm is not installed (``pip install timm``).

    Example:
        In a config: ``backbone=dict(type='clusterplug.TimmBackbone', name='resnet50')``
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise ModuleNotFoundError('TimmBackbone needs timm; install it with: pip install timm') from None
    return timm.create_model(name, **{'num_classes': 0, **options})


@MODELS.register_module()
def TorchvisionBackbone(name: str, **options) -> nn.Module:
    """Build a torchvision classification model without its classifier: (N, 3, H, W) to pooled features (N, C).

    Args:
        name: name of the model in torchvision (``torchvision.models.list_models()``).
        **options: further options of ``torchvision.models.get_model``, as ``weights='DEFAULT'``.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ValueError: a model of another kind (detection, segmentation).

    Example:
        In a config: ``backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet18')``
    """
    try:
        from torchvision.models import get_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'TorchvisionBackbone needs torchvision; install it with: pip install torchvision'
        ) from None
    model = get_model(name, **options)
    for part in _CLASSIFIERS:
        classifier = getattr(model, part, None)
        if isinstance(classifier, nn.Module):
            # SqueezeNet pools at the end of its classifier
            last = classifier[-1] if isinstance(classifier, nn.Sequential) else None
            setattr(model, part, last if isinstance(last, nn.AdaptiveAvgPool2d) else nn.Identity())
            return model
    raise ValueError(
        f'name must be a classification model of torchvision, whose classifier is removed, got {name!r} without any of '
        f'{", ".join(_CLASSIFIERS)}'
    )
