# SPDX-License-Identifier: Apache-2.0
"""Weights of FEC in files: the authors' names and ours, classifiers and backbones."""

import os
import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from clusterplug.core.tensor_files import load_tensors

# Names inside a block, a pooling and the rest: the authors' (left) and ours.
_BLOCK = {
    'token_mixer.f.': 'clustering.features.', 'token_mixer.v.': 'clustering.values.',
    'token_mixer.proj.': 'clustering.project.', 'token_mixer.sim_alpha': 'clustering.scale',
    'token_mixer.sim_beta': 'clustering.shift', 'mlp.fc1.': 'mlp.0.', 'mlp.fc2.': 'mlp.2.',
    'layer_scale_1': 'scale1', 'layer_scale_2': 'scale2', 'norm1.': 'norm1.', 'norm2.': 'norm2.',
}  # fmt: skip
_POOL = {'conv_f.': 'features.', 'conv_v.': 'values.', 'conv_skip.': 'skip.', 'norm2.': 'norm.'}


def is_official(state: dict) -> bool:
    """Whether the names are those of guikunchen/FEC."""
    return any(key.startswith(('network.', 'patch_embed.')) for key in state)


def convert_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of guikunchen/FEC.

    A classifier's norm becomes that of the last stage.

    Args:
        state: Names and tensors of a classifier, or of a backbone (their ``fork_feat``).

    Returns:
        dict: For :class:`~clusterplug.backbones.FEC`.

    Raises:
        ValueError: A name is unknown.

    Example:
        >>> list(convert_official({'network.0.1.token_mixer.sim_alpha': 1, 'network.1.conv_f.bias': 2}))
        ['stages.0.1.clustering.scale', 'pools.0.features.bias']
    """
    stages = 1 + max((int(key.split('.')[1]) for key in state if key.startswith('network.')), default=0) // 2
    return OrderedDict((_renamed(key, stages), value) for key, value in state.items())


def _renamed(key: str, stages: int) -> str:
    if key.startswith('head.'):
        return key
    if key.startswith('patch_embed.proj.'):
        return key.replace('patch_embed.', 'stem.')
    norm = re.fullmatch(r'norm(\d*)\.(weight|bias)', key)
    if norm:
        return f'norms.{int(norm[1]) // 2 if norm[1] else stages - 1}.{norm[2]}'
    layer = re.fullmatch(r'network\.(\d+)\.(.+)', key)
    if layer and int(layer[1]) % 2:
        for theirs, ours in _POOL.items():
            if layer[2].startswith(theirs):
                return f'pools.{int(layer[1]) // 2}.{ours}{layer[2][len(theirs) :]}'
    elif layer:
        number, _, rest = layer[2].partition('.')
        for theirs, ours in _BLOCK.items():
            if rest.startswith(theirs):
                return f'stages.{int(layer[1]) // 2}.{number}.{ours}{rest[len(theirs) :]}'
    raise ValueError(f"{key!r} is no name of guikunchen/FEC's models; is this a checkpoint of FEC?")


def backbone_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make of a classifier's weights (our names) those of a backbone for dense tasks.

    The head goes; norms of earlier stages, which a classifier lacks, are added as they start: ones and zeros.

    Args:
        state: Names and tensors.

    Returns:
        dict: For ``FEC(num_classes=0)``.

    Raises:
        ValueError: The weights are of another model.
    """
    found = OrderedDict((key, value) for key, value in state.items() if not key.startswith('head.'))
    norms = [re.match(r'norms\.(\d{1,3})\.', key) for key in state if key.startswith('norms.')]
    stages = 1 + max((int(norm[1]) for norm in norms if norm), default=-1)
    needed = ['stem.proj.bias', *(f'pools.{stage}.norm.weight' for stage in range(stages - 1))]
    missing = [key for key in needed if key not in state]
    if not stages or None in norms or missing:
        shown = ', '.join(missing[:3]) or 'norms.<stage>'
        raise ValueError(f'the weights must be those of an FEC, got {", ".join(list(state)[:3])} and no {shown}')
    for stage in range(stages):
        channels = state['stem.proj.bias'] if stage == 0 else state[f'pools.{stage - 1}.norm.weight']
        found.setdefault(f'norms.{stage}.weight', torch.ones_like(channels))
        found.setdefault(f'norms.{stage}.bias', torch.zeros_like(channels))
    return found


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read weights from a checkpoint of mmengine, timm or plain torch, with our names.

    Averaged weights (``state_dict_ema``) are preferred, as timm's validation does it; ``module.`` and ``backbone.`` in
    front of names is taken off.

    Args:
        path: The file. Only tensors and plain values are unpickled, no code is run.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file holds no weights.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint must be a file, got {os.fspath(path)!r}, which does not exist')
    content = load_tensors(path)
    if isinstance(content, dict):
        for key in ('state_dict_ema', 'state_dict', 'model'):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f'checkpoint must hold the weights of a model, got {os.fspath(path)!r}, which holds none')
    wrong = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f'checkpoint must hold tensors by name, got {os.fspath(path)!r} with {wrong[0]!r:.60}')
    weights = OrderedDict((key.removeprefix('module.'), value) for key, value in content.items())
    if any(key.startswith('backbone.') for key in weights):
        weights = OrderedDict(
            (key.removeprefix('backbone.'), value) for key, value in weights.items() if key.startswith('backbone.')
        )
    return convert_official(weights) if is_official(weights) else weights


def load_fec(model: nn.Module, checkpoint: str | os.PathLike | dict[str, Tensor], *, new_head: bool = False) -> None:
    """Load weights into an FEC, all of them or an error.

    Weights of a classifier also fit a backbone without head, which leaves the head out.

    Args:
        model: :class:`~clusterplug.backbones.FEC`.
        checkpoint: A file, or names and tensors; the authors' names or ours.
        new_head: Keep the head of the model as it is, whatever the checkpoint has: for another number of classes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The checkpoint is of another head, of another architecture, or of no FEC.

    Example:
        >>> from clusterplug.backbones import FEC
        >>> load_fec(FEC('small', num_classes=3), FEC('small', num_classes=3).state_dict())
    """
    weights = checkpoint if isinstance(checkpoint, dict) else read_weights(checkpoint)
    if is_official(weights):
        weights = convert_official(weights)
    if any(key.startswith('norms.') for key in weights) and (not model.num_classes or 'head.weight' not in weights):
        weights = backbone_weights(weights)
    own = model.state_dict()
    classes = len(weights['head.weight']) if 'head.weight' in weights else 0
    if model.num_classes and classes != model.num_classes and not new_head:
        raise ValueError(
            f'the checkpoint must have a head of {model.num_classes} classes, got '
            f'{f"one of {classes}" if classes else "no head"}; build the model with num_classes={classes or 0}, or '
            f'pass new_head=True to keep the new head untrained'
        )
    if new_head:
        weights = {key: value for key, value in weights.items() if not key.startswith('head.')}
    wanted = {key for key in own if not (new_head and key.startswith('head.'))}
    # a model may ask for fewer maps than the checkpoint has norms
    weights = {key: value for key, value in weights.items() if not key.startswith('norms.') or key in wanted}
    wrong = sorted(key for key in wanted & set(weights) if own[key].shape != weights[key].shape)
    missing, extra = sorted(wanted - set(weights)), sorted(set(weights) - wanted)
    if wrong or missing or extra:
        raise ValueError(
            f'the checkpoint must be of the same architecture: {len(missing)} weights are missing {missing[:3]}, '
            f'{len(extra)} are unknown {extra[:3]}, {len(wrong)} have another shape {wrong[:3]}; check arch'
        )
    model.load_state_dict(weights, strict=False)
