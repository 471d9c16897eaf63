# SPDX-License-Identifier: Apache-2.0
"""Models, pictures and labels that token_pareto compares on."""

import difflib
import importlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(name: str, size: int, pretrained: str | None) -> torch.nn.Module:
    """Return the model that MODEL names, ready for inference.

    Raises:
        SystemExit: There is no such model, or no such weights.
    """
    if ':' in name:
        return _from_function(name, pretrained)
    if name.startswith('transformers/'):
        return _from_transformers(name.split('/', 1)[1], size, pretrained)
    import timm

    base = name.split('.')[0]
    if not timm.is_model(base):
        raise SystemExit(f'MODEL {name!r} is no model of timm{_nearest(base, timm.list_models())}')
    if pretrained and pretrained != 'default':
        name = pretrained if pretrained.split('.')[0] == base else f'{base}.{pretrained}'
        known = timm.list_models(f'{base}.*', pretrained=True)
        if name not in known:
            raise SystemExit(f'--pretrained {pretrained}: timm has {", ".join(known) or "no weights"} for {base}')
    options = dict(pretrained=pretrained is not None)
    try:
        return timm.create_model(name, img_size=size, **options).eval()
    except TypeError:  # a model for pictures of any size
        return timm.create_model(name, **options).eval()


def _from_function(name: str, pretrained: str | None) -> torch.nn.Module:
    if pretrained:
        raise SystemExit('--pretrained has no use for module:function, whose function loads its own weights')
    module, _, function = name.partition(':')
    sys.path.insert(0, '.')
    try:
        found = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise SystemExit(f'MODEL {name!r} must be module:function that can be imported from here: {error}') from None
    model = found()
    if not isinstance(model, torch.nn.Module):
        raise SystemExit(f'MODEL {name!r} must return a torch.nn.Module, got {type(model).__name__}')
    return model.eval()


def _from_transformers(name: str, size: int, pretrained: str | None) -> torch.nn.Module:
    import transformers

    cls = getattr(transformers, name, None)
    if getattr(cls, 'config_class', None) is None:
        raise SystemExit(f'transformers has no model class {name!r}{_nearest(name, dir(transformers))}')
    if pretrained == 'default':
        raise SystemExit('--pretrained needs the name of weights for a class of transformers')
    if pretrained:
        return cls.from_pretrained(pretrained).eval()
    config = cls.config_class()
    if hasattr(config, 'image_size'):
        config.image_size = size
    return cls(config).eval()


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f'; did you mean {", ".join(near)}?' if near else ''


def normalization(model: torch.nn.Module, name: str = '', pretrained: str | None = None) -> tuple[tuple, tuple]:
    """Return mean and deviation of the pictures that a model was made for: its own data config, or ImageNet's."""
    for module in model.modules():
        config = vars(module).get('pretrained_cfg') or vars(module).get('default_cfg') or {}
        if 'mean' in config and 'std' in config:
            return tuple(config['mean']), tuple(config['std'])
    if name.startswith('transformers/') and pretrained:
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(pretrained)
            return tuple(processor.image_mean), tuple(processor.image_std)
        except (OSError, ValueError, AttributeError) as error:
            print(f'no image processor for {pretrained}: normalized as ImageNet ({error})')
    return IMAGENET


def pictures(folder: str | None, number: int, size: int, scale: tuple[tuple, tuple] = IMAGENET) -> torch.Tensor:
    """Return (N, 3, size, size) normalized pictures: those of a folder, or smooth random ones with detail."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(number, 3, 12, 12, generator=generator)
        fine = torch.randn(number, 3, size, size, generator=generator)
        return F.interpolate(coarse, size=(size, size), mode='bicubic') + 0.1 * fine
    import numpy as np
    from PIL import Image

    files = _files(folder, '--images', ('.jpg', '.jpeg', '.png'))
    mean, std = (torch.tensor(values) for values in scale)
    images = []
    for path in files[:number]:
        image = Image.open(path).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
        images.append(((torch.from_numpy(np.array(image)).float() / 255 - mean) / std).permute(2, 0, 1))
    return torch.stack(images)


def _files(folder: str, option: str, suffixes: tuple[str, ...]) -> list[Path]:
    if not Path(folder).is_dir():
        raise SystemExit(f'{option} must be a folder, there is none at {folder}')
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in suffixes)
    if not files:
        raise SystemExit(f'{option} must be a folder with {", ".join(suffixes)} files, {folder} has none')
    return files


def miou(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean IoU of the highest channel (B, N, K) against labels (B, N), 255 left out."""
    predicted, valid = scores.argmax(-1), labels != 255
    values = []
    for label in labels[valid].unique():
        hit, is_label = (predicted == label) & valid, (labels == label)
        values.append(float((hit & is_label).sum() / (hit | is_label).sum()))
    return sum(values) / max(1, len(values))


def read_labels(folder: str | None, number: int, size: tuple[int, int], num_classes: int) -> torch.Tensor | None:
    """Return (B, N) labels at the resolution (H, W) of the output, from pictures of class numbers in a folder."""
    if folder is None:
        return None
    import numpy as np
    from PIL import Image

    files = _files(folder, '--labels', ('.png',))[:number]
    if len(files) < number:
        raise SystemExit(f'--labels must have a .png for each of the {number} pictures, {folder} has {len(files)}')
    maps = []
    for path in files:
        image = Image.open(path)
        if len(image.getbands()) != 1:
            raise SystemExit(f'--labels must hold pictures of class numbers, {path.name} has mode {image.mode}')
        maps.append(torch.from_numpy(np.array(image.resize(size[::-1], Image.Resampling.NEAREST))).long().flatten())
    labels = torch.stack(maps)
    highest = int(labels.masked_fill(labels == 255, 0).max())
    if highest >= num_classes:
        raise SystemExit(f'--labels name class {highest}, and the output of the model has {num_classes} channels')
    return labels
