# SPDX-License-Identifier: Apache-2.0
"""Errors that the user of a tool can resolve, in one sentence: files, folders, configs, packages that are missing."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pickle import UnpicklingError

from clusterplug.core.distributed import leave_ranks
from clusterplug.core.outputs import FolderInUse, check_folder
from clusterplug.dependencies import DEPENDENCIES

__all__ = ['check_folder', 'check_packages', 'install_line', 'run_tool']

_ALWAYS_OF_THE_USER = ('CheckpointMismatch', 'UnreadableCheckpoint', 'RunFailed')
_OTHER_PACKAGES = dict(
    mmseg="'mmsegmentation>=1.2,<1.3'", mmpretrain="'mmpretrain>=1.2,<1.3'", open_clip='open_clip_torch',
    torchsparse='git+https://github.com/mit-han-lab/torchsparse.git', MinkowskiEngine='MinkowskiEngine',
    lmdb='lmdb', faiss='faiss-cpu', safetensors='safetensors',
)  # fmt: skip
_BACKENDS = dict(spconv='spconv', torchsparse='torchsparse', minkowski='MinkowskiEngine')
_NEEDED_BY_TYPE = dict(
    TIMMBackbone=('timm',), OpenCLIPEncoders=('open_clip',), TransformersEncoders=('transformers',),
)  # fmt: skip


def run_tool(run: Callable[[], int], name: str) -> int:
    """Run a tool's main function; an error that its user can resolve becomes one sentence and exit code 1.

    These are errors before the first step: a config, a file, a folder, a package that is missing. An error in the
    middle of a training keeps its traceback, and so does every error with ``CLUSTERPLUG_TRACEBACK=1``. A rank whose run
    went well leaves its process group.
    """
    with suppress(AttributeError, ValueError):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        code = run()
        leave_ranks()
        return code
    except Exception as error:
        if os.environ.get('CLUSTERPLUG_TRACEBACK') == '1' or not _before_the_first_step(error):
            raise
        print(f'{name}: {_sentence(error)}', file=sys.stderr)
        return 1


def _before_the_first_step(error: Exception) -> bool:
    if isinstance(error, FolderInUse | UnpicklingError) or type(error).__name__ in _ALWAYS_OF_THE_USER:
        return True
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    running = any(code.co_filename.endswith(os.path.join('mmengine', 'runner', 'loops.py')) for code in frames)
    return not running or any(code.co_name in ('before_train', 'before_test', 'before_run') for code in frames)


def _sentence(error: BaseException) -> str:
    """The error in one line, with the line that installs a package where one is missing."""
    cause = error
    while cause is not None and not (isinstance(cause, ModuleNotFoundError) and cause.name):
        cause = cause.__cause__ or cause.__context__
    line = install_line(cause.name) if cause is not None else ''
    lines = [each.strip() for each in str(error).strip().splitlines() if each.strip()] or [repr(error)]
    text = lines[0] if len(lines) == 1 or len(lines[0]) > 40 else ' '.join(lines[:3])
    if isinstance(error, KeyError):
        text = str(error.args[0])
    known = isinstance(error, ValueError | OSError | ImportError | FolderInUse)
    text = text if known else f'{type(error).__name__}: {text}'
    return text if not line or line in text else f'{text}; {line}'


def install_line(module: str) -> str:
    """``pip install ...`` for a module that clusterplug works with, else nothing."""
    top = module.partition('.')[0]
    found = next((d for d in DEPENDENCIES if top in (d.module, d.package)), None)
    package = f"'{found.package}{found.allowed}'" if found else _OTHER_PACKAGES.get(top, '')
    return f'pip install {package}' if package else ''


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
    except ValueError:  # a module without a finder of its own
        return sys.modules.get(module) is not None


def check_packages(config) -> None:
    """Raise if a config needs a package that is not installed, before anything is built from it.

    Raises:
        ModuleNotFoundError: With the lines that install what is missing.
    """
    needed = {str(config.get('default_scope') or 'mmengine')}

    def visit(value):
        if isinstance(value, dict):
            kind = value.get('type')
            if isinstance(kind, str):
                needed.add(kind.partition('.')[0] if '.' in kind else '')
                needed.update(_NEEDED_BY_TYPE.get(kind.rpartition('.')[2], ()))
            if kind is not None and isinstance(value.get('sparseconv_backend'), str):
                needed.add(_BACKENDS.get(value['sparseconv_backend'], ''))
            for each in value.values():
                visit(each)
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each)

    keys = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'visualizer')
    visit([config.get(key) for key in keys])
    missing = sorted(name for name in needed if install_line(name) and not _is_installed(name))
    if missing:
        lines = ', '.join(f'{name} ({install_line(name)})' for name in missing)
        raise ModuleNotFoundError(f'the config needs packages that are not installed: {lines}')
