"""Resuming mmengine's own checkpoints: torch >= 2.6 loads weights only, and theirs hold log histories as well.

The classes that mmengine itself writes are allowed by name while mmengine loads; any other class is still refused,
so a checkpoint from elsewhere cannot run code.
"""

import pickle

import numpy as np
import torch

from clusterplug.compat._patch import Workaround

_ADVICE = (
    '{file} holds objects that torch does not load by default: {reason} If you trust its source, set '
    'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 and run again (this lets the file run code); otherwise ask for a file with '
    'weights only.'
)


def _mm_function(owner: type, name: str):
    """Stand in for ``getattr``, through which pickle finds functions that mmengine keeps in a class.

    These are a history's statistics (min, max, current, mean) and the curve of a one-cycle schedule.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    HistoryBuffer()  # the first history of a process fills the table of statistics
    if owner is HistoryBuffer and name in HistoryBuffer._statistics_methods:
        return HistoryBuffer._statistics_methods[name]
    if owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(OneCycleParamScheduler, name)
    raise pickle.UnpicklingError(f'Unsupported attribute: {name!r} of {owner!r}')


def allowed_classes() -> list:
    """What mmengine writes into a checkpoint besides tensors: log histories, schedules, numpy values, configs."""
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    core = np._core if hasattr(np, '_core') else np.core
    classes = [
        HistoryBuffer,
        OneCycleParamScheduler,
        ConfigDict,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
    ]
    classes += [type(np.dtype(code)) for code in '?bBhHiIlLqQefdU']
    # Files from numpy 1 call the same functions by their old address.
    old_names = [(core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct')]
    old_names += [(core.multiarray.scalar, 'numpy.core.multiarray.scalar')]
    # Pickle writes the statistics as getattr(HistoryBuffer, 'min'); the true getattr would reach anything.
    getattr_names = [(_mm_function, f'{module}.getattr') for module in ('builtins', '__builtin__')]
    return list(dict.fromkeys(classes)) + old_names + getattr_names


def patch(module):
    """Wrap ``CheckpointLoader.load_checkpoint``; nothing to do before torch 2.6."""
    if torch.__version__ < '2.6' or not hasattr(torch.serialization, 'safe_globals'):
        return []
    host_load = module.CheckpointLoader.load_checkpoint.__func__

    def load_checkpoint(cls, filename, map_location=None, logger='current'):
        try:
            with torch.serialization.safe_globals(allowed_classes()):
                return host_load(cls, filename, map_location, logger)
        except pickle.UnpicklingError as error:
            lines = [line.strip() for line in str(error).splitlines() if 'Unsupported' in line]
            reason = lines[0] if lines else str(error).splitlines()[0]
            raise pickle.UnpicklingError(_ADVICE.format(file=filename, reason=reason)) from error

    return [(module.CheckpointLoader, 'load_checkpoint', classmethod(load_checkpoint))]


WORKAROUND = Workaround(
    name='torch_load',
    host='mmengine.runner.checkpoint',
    patch=patch,
    thread='open-mmlab/mmengine#1655, #1650',
    noted='2026-11, mmengine 0.10.7 with torch 2.11',
    until='mmengine names its own classes to torch.serialization',
)
