# SPDX-License-Identifier: Apache-2.0
"""The one way in which tools read a checkpoint: as data, and only when it fits the model that the config builds."""

import ast
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch.nn.parameter import is_lazy

from clusterplug.compat.mmengine import torch_load
from clusterplug.compat.mmengine.torch_load import UnreadableCheckpoint, load_plain

__all__ = [
    'CheckpointFit', 'CheckpointFitHook', 'CheckpointMismatch', 'UnreadableCheckpoint', 'check_fit', 'checkpoint_fit',
    'load_checkpoint_into', 'newest_readable', 'read_checkpoint',
]  # fmt: skip

LEAST_SHARE = 0.5


class CheckpointMismatch(ValueError):
    """A checkpoint of another model; the message names both."""


class CheckpointFit(NamedTuple):
    """How far a checkpoint fits a model.

    Attributes:
        fitting: parameters of the model that are in the file with their shape.
        total: parameters of the model.
        missing: names of parameters and buffers of the model that are not in the file.
        unexpected: names in the file that the model has not.
        other_shape: names of parameters in both, with the shape in the file and that of the model.
    """

    fitting: int
    total: int
    missing: list[str]
    unexpected: list[str]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def share(self) -> float:
        """Share of the model's parameters that the file fills, 0 to 1."""
        return self.fitting / self.total if self.total else 1.0


def load_checkpoint_into(
    model: torch.nn.Module, path: str | os.PathLike, *, partial: bool = False, map_location='cpu'
) -> dict:
    """Load a checkpoint's weights into a model, and refuse a file that holds something else.

    Args:
        model: As the config builds it; wrappers of distributed training and test-time augmentation are looked through.
        path: A file, or an address that mmengine reads (``https://``, ``s3://`` ...).
        partial: Whether a file that fills a part of the model is welcome, as when a training starts from a backbone.
            Otherwise at least half of the parameters must be in it, and none with another shape.
        map_location: As for ``torch.load``.

    Returns:
        The whole checkpoint; the model has its weights. What is missing in an accepted file is said in a warning.

    Raises:
        CheckpointMismatch: If no parameter of the model is in the file, or too few (``partial=False``).
        UnreadableCheckpoint: If the file is no checkpoint, or not a whole one.
        pickle.UnpicklingError: If it holds objects other than weights and plain values.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'a.pth')
        >>> torch.save(torch.nn.Linear(2, 3).state_dict(), path)
        >>> sorted(load_checkpoint_into(torch.nn.Linear(2, 3), path))
        ['bias', 'weight']
    """
    from mmengine.runner.checkpoint import _load_checkpoint_to_model

    checkpoint = read_checkpoint(path, map_location)
    model = _unwrapped(model)
    check_fit(model, checkpoint, path, partial=partial)
    _load_checkpoint_to_model(model, checkpoint, logger='silent')
    return checkpoint


def read_checkpoint(path: str | os.PathLike, map_location='cpu') -> dict:
    """Read a checkpoint as data: weights, plain values and mmengine's log histories; nothing of the file is run.

    Raises:
        As :func:`load_checkpoint_into`, and UnreadableCheckpoint if there are no weights in the file.
    """
    if '://' in str(path):
        from mmengine.runner.checkpoint import CheckpointLoader

        torch_load.WORKAROUND.apply()
        checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location, logger='silent')
    else:
        checkpoint = load_plain(Path(path).expanduser(), map_location)
    _weights(checkpoint, path)
    return checkpoint


def check_fit(
    model: torch.nn.Module, checkpoint: dict, path: str | os.PathLike, *, partial: bool = False
) -> CheckpointFit:
    """Raise if a checkpoint that was read does not fit, warn if it fits in part; see :func:`load_checkpoint_into`."""
    model = _unwrapped(model)
    fit = checkpoint_fit(model, _weights(checkpoint, path))
    if fit.share == 1 and not fit.other_shape:
        return fit
    refused = fit.fitting == 0 or (not partial and (fit.share < LEAST_SHARE or fit.other_shape))
    text = _describe(fit, model, checkpoint, path)
    if refused:
        raise CheckpointMismatch(f'{text}. Use the config that it was trained with, or another checkpoint')
    if is_main_process():
        warnings.warn(f'{text}. What is missing keeps its initial values', stacklevel=2)
    return fit


def checkpoint_fit(model: torch.nn.Module, weights: dict) -> CheckpointFit:
    """Compare names and shapes of a state dict with those of a model.

    Modules that rename or reshape while they load (older layouts of sparse convolutions, memories) are compared by
    name only.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> checkpoint_fit(model, {'weight': torch.zeros(3, 2), 'b': torch.zeros(3)}).share
        0.5
    """
    weights = {re.sub(r'^module\.', '', key): value for key, value in weights.items()}
    own = list(model.state_dict(keep_vars=True).items())
    free = tuple(f'{name}.' if name else '' for name, module in model.named_modules() if _loads_in_its_own_way(module))
    filled, parameters, other_shape = set(), set(), {}
    for name, value in own:
        if not isinstance(value, torch.nn.Parameter):
            continue
        parameters.add(id(value))  # tied parameters are one
        if name not in weights:
            continue
        found = tuple(getattr(weights[name], 'shape', ()))
        if is_lazy(value) or found == tuple(value.shape) or any(name.startswith(each) for each in free):
            filled.add(id(value))
        else:
            other_shape[name] = found, tuple(value.shape)
    names = {name for name, _ in own}
    missing = [name for name, value in own if name not in weights and id(value) not in filled]
    return CheckpointFit(len(filled), len(parameters), missing, [k for k in weights if k not in names], other_shape)


class CheckpointFitHook(Hook):
    """Check every checkpoint that a Runner loads, before its weights are copied into the model.

    Args:
        partial: As for :func:`load_checkpoint_into`.
    """

    # after the hooks that exchange weights, such as EMAHook
    priority = 'LOWEST'

    def __init__(self, partial: bool = False):
        self.partial = partial

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare."""
        check_fit(runner.model, checkpoint, runner._load_from or runner.work_dir, partial=self.partial)


def newest_readable(folder: str | os.PathLike, out_dir: str | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint from which a training in a work folder goes on: the newest that can be read.

    mmengine notes the last one in ``last_checkpoint``, with its full path; a folder that was copied or moved has its
    own file of that name, and only the folder that is asked for is looked at.

    Args:
        folder: A work folder.
        out_dir: ``out_dir`` of the config's CheckpointHook, where its checkpoints are in a folder of the same name.

    Returns:
        The file, None if the folder has no checkpoint; and a sentence for each newer one that was passed over.

    Raises:
        UnreadableCheckpoint: If there are checkpoints and none of them can be read.
    """
    folder, reasons = Path(folder), []
    folders = [folder, *([Path(out_dir) / folder.resolve().name] if out_dir else [])]
    for path in _candidates(folders):
        try:
            content = read_checkpoint(path)
            if not isinstance(content.get('meta'), dict):
                raise UnreadableCheckpoint(f'{path} holds weights only, no training goes on from it')
            return path, reasons
        except FileNotFoundError:
            reasons.append(f'{path}, the last one by {folders[0] / "last_checkpoint"}, is not there')
        except Exception as error:  # junk raises whatever a reader of a damaged file can raise
            reasons.append(str(error))
    if reasons:
        raise UnreadableCheckpoint(
            f'{folder} holds no checkpoint that can be read: {"; ".join(reasons)}. Remove them to begin anew'
        )
    return None, []


def _candidates(folders: list[Path]) -> list[Path]:
    """Checkpoints of steps and epochs, the noted one first, then the newest first."""
    found = [path for folder in folders for path in folder.glob('*.pth')]
    found = [path for path in found if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)]
    found.sort(key=lambda path: (path.stat().st_mtime_ns, int(re.search(r'\d+', path.name)[0])), reverse=True)
    note = folders[0] / 'last_checkpoint'
    noted = Path(note.read_text(errors='replace').strip()).name if note.is_file() else ''
    if not noted:
        return found
    first = next((path for path in found if path.name == noted), folders[0] / noted)
    return [first, *(path for path in found if path != first)]


def _weights(checkpoint, path) -> dict:
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UnreadableCheckpoint(f'{path} holds no weights; a checkpoint has them under state_dict')
    return weights


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _loads_in_its_own_way(module: torch.nn.Module) -> bool:
    hooks = module._load_state_dict_pre_hooks
    own = type(module)._load_from_state_dict is not torch.nn.Module._load_from_state_dict
    return (own and not isinstance(module, torch.nn.modules.batchnorm._NormBase)) or bool(hooks)


def _describe(fit: CheckpointFit, model, checkpoint: dict, path) -> str:
    held = _prefixes(_weights(checkpoint, path))
    trained = _model_name(checkpoint.get('meta'))
    parts = [
        f'{path} does not fit the model of the config: it fills {fit.fitting} of {fit.total} parameters '
        f'({100 * fit.share:.0f} %)',
        f'the file holds {trained + ": " if trained else ""}{held}',
        f'the config builds {_class_name(model)}: {_prefixes(model.state_dict())}',
    ]
    if fit.missing:
        parts.append(f'missing in the file: {_prefixes(fit.missing)}')
    if fit.unexpected:
        parts.append(f'unknown to the model: {_prefixes(fit.unexpected)}')
    if fit.other_shape:
        shown = [f'{name} {there} in the file, {here} here' for name, (there, here) in fit.other_shape.items()]
        parts.append(f'of another shape: {", ".join(shown[:3])}{" ..." if len(shown) > 3 else ""}')
    return '; '.join(parts)


def _prefixes(names: Iterable[str]) -> str:
    """Names by their first parts with the number of tensors: ``backbone.encoder (40), decode_head (2)``."""
    names = [str(name).split('.') for name in names]
    depth = 2 if len({name[0] for name in names}) <= 2 else 1
    counts = Counter('.'.join(name[:depth]) for name in names)
    shown = [f'{prefix} ({count})' for prefix, count in counts.most_common(6)]
    return ', '.join(shown) + (f' and {len(counts) - 6} more' if len(counts) > 6 else '')


def _class_name(model: torch.nn.Module) -> str:
    inner = getattr(model, 'model', None)
    return type(model).__name__ + (f' of {type(inner).__name__}' if isinstance(inner, torch.nn.Module) else '')


def _model_name(meta) -> str:
    """Type of the model in the config text of a checkpoint, which is read and never run."""
    text = meta.get('cfg') if isinstance(meta, dict) else None
    try:
        body = ast.parse(text).body if isinstance(text, str) else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ''
    for line in body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], 'id', '') == 'model':
            types = [
                word.value.value
                for call in ast.walk(line.value) if isinstance(call, ast.Call)
                for word in call.keywords if word.arg == 'type' and isinstance(word.value, ast.Constant)
            ]  # fmt: skip
            return str(types[0])[:60] if types else ''
    return ''
