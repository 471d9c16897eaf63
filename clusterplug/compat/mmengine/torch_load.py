# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are data: what mmengine writes can be read back, code in a file is refused, and so is junk, by name.

torch >= 2.6 reads weights only, and mmengine's files hold log histories as well, so that its own files are refused;
before 2.6, and for addresses (``https://``) still today, mmengine's loader runs whatever a file says. Both end here:
the file is read by :mod:`clusterplug.compat._checkpoint_pickle`, in every version of torch.
"""

import os
import pickle
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch

from clusterplug.compat.mmengine import _checkpoint_pickle
from clusterplug.compat.workaround import Workaround

_ADVICE = (
    '{file} holds objects that are not loaded: {reason}. If you trust its source, set '
    'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 and run again (this lets the file run code); otherwise ask for a file with '
    'weights only.'
)
_CODE = 'it is a TorchScript archive, which holds code; ask for its weights (a state dict)'
_ONE_AT_A_TIME = threading.RLock()


class UnreadableCheckpoint(ValueError):
    """A file that is no checkpoint, or not a whole one; the message has the file and the reason."""


def load_plain(file, map_location=None):
    """``torch.load`` for weights, plain values and what mmengine writes besides; nothing of the file is run.

    Args:
        file: Path or binary file.
        map_location: As for ``torch.load``.

    Raises:
        pickle.UnpicklingError: If the file holds anything else, with its name and the way out.
        UnreadableCheckpoint: If it is no checkpoint: a text, empty, cut off, a folder, another kind of archive.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(file, str | os.PathLike):
        _refuse_junk(file)
    if os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0').lower() in ('1', 'y', 'yes', 'true'):
        return torch.load(file, map_location=map_location, weights_only=False)
    name = file if isinstance(file, str | os.PathLike) else getattr(file, 'name', 'the checkpoint')
    with _ONE_AT_A_TIME:
        theirs = torch.serialization._weights_only_unpickler
        is_torchscript = torch.serialization._is_torchscript_zip
        torch.serialization._weights_only_unpickler = _Instead(
            theirs, Unpickler=_checkpoint_pickle.Unpickler, load=_checkpoint_pickle.load
        )
        torch.serialization._is_torchscript_zip = partial(_refuse_torchscript, is_torchscript)
        try:
            return torch.load(file, map_location=map_location, weights_only=True)
        except _TorchScript:
            raise UnreadableCheckpoint(f'{name} is no checkpoint: {_CODE}') from None
        except _checkpoint_pickle.Refused as error:
            raise pickle.UnpicklingError(_ADVICE.format(file=name, reason=error)) from error
        except MemoryError:
            raise
        # What a damaged file makes the readers raise is not limited to a few errors.
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise UnreadableCheckpoint(f'{name} is no checkpoint: {_reason(file, error)}') from error
        finally:
            torch.serialization._weights_only_unpickler = theirs
            torch.serialization._is_torchscript_zip = is_torchscript


class _TorchScript(Exception):
    """The file is an archive of TorchScript."""


def _refuse_torchscript(is_torchscript, archive) -> bool:
    # Before 2.6 torch hands such an archive to torch.jit.load, which runs its code, also with weights_only=True.
    if is_torchscript(archive):
        raise _TorchScript
    return False


def _refuse_junk(path) -> None:
    if os.path.isdir(path):
        raise UnreadableCheckpoint(f'{path} is a folder, not a checkpoint; name the file in it')
    if not os.path.exists(path):
        raise FileNotFoundError(f'no checkpoint {path}')
    if os.path.isfile(path) and not os.path.getsize(path):
        raise UnreadableCheckpoint(f'{path} is no checkpoint: the file is empty')
    if os.path.isfile(path) and tarfile.is_tarfile(path):
        raise UnreadableCheckpoint(f'{path} is a tar archive, as torch wrote before 0.4; unpack it or convert it')


def _reason(file, error: Exception) -> str:
    text = (str(error).splitlines() or [''])[0]
    if not isinstance(file, str | os.PathLike):
        return f'{type(error).__name__}: {text}'
    with open(file, 'rb') as opened:
        start = opened.read(4)
    if start[:2] != b'PK':
        return 'it does not begin as a file of torch.save does, or is cut off'
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:
        return 'it is cut off or damaged'
    if not any(name.endswith('data.pkl') for name in names):
        return f'it is a zip archive of something else ({", ".join(names[:3])})'
    return f'it is damaged ({type(error).__name__}: {text})'


def _load_url(url: str, model_dir=None, map_location=None, progress: bool = True, **_):
    """Download once into torch's cache, then read as any other file; torch's own reads such files unrestricted."""
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlparse(url).path).name
    if not path.is_file():
        torch.hub.download_url_to_file(url, str(path), None, progress=progress)
    return load_plain(path, map_location)


class _Instead(ModuleType):
    """A module with some of its names replaced."""

    def __init__(self, host: ModuleType, **replaced):
        super().__init__(host.__name__)
        self.__dict__.update(replaced, _host=host)

    def __getattr__(self, name):
        return getattr(self._host, name)


def patch(module):
    """Replace torch's ``load`` and ``load_url`` inside mmengine's module of checkpoints."""
    return [(module, 'torch', _Instead(torch, load=load_plain)), (module, 'load_url', _load_url)]


WORKAROUND = Workaround(
    name='torch_load',
    host='mmengine.runner.checkpoint',
    patch=patch,
    thread='open-mmlab/mmengine#1655, #1650',
    noted='2026-11, mmengine 0.10.7 with torch 2.11',
    until='mmengine names its own classes to torch.serialization and reads addresses restricted',
)
