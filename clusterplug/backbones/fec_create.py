# SPDX-License-Identifier: Apache-2.0
"""FEC by name, as timm users make models; and its names inside timm."""

import os

from clusterplug.backbones.fec import FEC
from clusterplug.backbones.fec_archs import ARCHS
from clusterplug.backbones.fec_checkpoint import load_fec

NAMES = tuple(f'fec_{arch}' for arch in ARCHS)


def list_models() -> list[str]:
    """Names that :func:`create` takes.

    Example:
        >>> list_models()
        ['fec_small', 'fec_base', 'fec_large']
    """
    return list(NAMES)


def create(
    name: str,
    num_classes: int = 1000,
    *,
    checkpoint: str | os.PathLike | None = None,
    new_head: bool = False,
    **options,
) -> FEC:
    """Make a model by its name.

    Args:
        name: One of :func:`list_models`.
        num_classes: 0 = feature maps.
        checkpoint: File with weights, the authors' or ours.
        new_head: Keep the head untrained where the checkpoint has another number of classes.
        **options: Further arguments of :class:`~clusterplug.backbones.FEC`.

    Raises:
        FileNotFoundError, ValueError: An unknown name or option, or a checkpoint that does not fit.

    Example:
        >>> create('fec_small', num_classes=10).num_features
        320
    """
    if name not in NAMES:
        raise ValueError(f'name must be one of {", ".join(NAMES)}, got {name!r}')
    model = FEC(name.removeprefix('fec_'), num_classes=num_classes, **options)
    if checkpoint is not None:
        load_fec(model, checkpoint, new_head=new_head)
    return model


def register_in_timm() -> list[str]:
    """Make ``timm.create_model('fec_small')`` and its sisters work; returns their names.

    Raises:
        ModuleNotFoundError: timm is not installed.

    Example:
        >>> register_in_timm()
        ['fec_small', 'fec_base', 'fec_large']
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm is not installed; install it with: pip install 'clusterplug[vit]'") from error
    for name in NAMES:
        if not timm.is_model(name):
            timm.models.register_model(_entry(name))
    return list(NAMES)


def _entry(name: str):
    def entry(
        pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, in_chans=3, **options
    ):
        if pretrained:
            raise ValueError(
                f'{name} has no weights to download; pass checkpoint_path=..., a file of tools/model_converters/fec.py'
            )
        options.setdefault('num_classes', 1000)
        if options.pop('features_only', False):
            options['num_classes'] = 0
        model = create(name, in_channels=in_chans, **options)
        model.pretrained_cfg = model.default_cfg = dict(
            num_classes=1000, input_size=(3, 224, 224), crop_pct=0.9, interpolation='bicubic', classifier='head',
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), first_conv='stem.proj', fixed_input_size=False,
        )  # fmt: skip
        return model

    entry.__name__ = name
    entry.__module__ = __name__
    entry.__doc__ = f'FEC-{name.removeprefix("fec_")} of clusterplug, for timm.'
    return entry
