# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files that torch wrote, as data: nothing that a file names or carries as code runs.

``torch.jit.load`` compiles and runs code of the file while it reads it, and ``torch.load(weights_only=True)`` hands
TorchScript archives to it in every torch before 2.6. Both kinds of archive are zips with a pickle of the structure and
one plain record for the numbers of each tensor, so they are read here, whatever the version of torch.
"""

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

_DTYPES = {
    f'{name}Storage': dtype
    for name, dtype in dict(
        Float=torch.float32, Double=torch.float64, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64,
        Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool,
        ComplexFloat=torch.complex64, ComplexDouble=torch.complex128, Untyped=torch.uint8,
    ).items()
}  # fmt: skip
_SAFETENSORS = dict(
    F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16, I64=torch.int64, I32=torch.int32,
    I16=torch.int16, I8=torch.int8, U8=torch.uint8, BOOL=torch.bool, C64=torch.complex64,
)  # fmt: skip
# Lists that TorchScript marks with their type.
_LISTS = {'build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag'}
_MOST_MODULES = 100_000
_MOST_VALUES = 1_000_000
_MOST_LEVELS = 50


def load_tensors(path: str | os.PathLike) -> dict:
    """Read a checkpoint, a TorchScript archive or a safetensors file.

    Args:
        path: The file; what it is is found out from its content.

    Returns:
        What ``torch.save`` wrote, if that is a dict of tensors, numbers, text, lists and dicts (options of a
        command line, which timm keeps, come back as a dict, or as such from files before torch 1.6); of a TorchScript
        archive the state dict that ``torch.jit.load(path).state_dict()`` has. On the CPU, without gradients.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no dict, or holds anything else; the file and what it holds are named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'weights.pth')
        >>> torch.save(dict(state_dict=dict(weight=torch.ones(2)), epoch=3), path)
        >>> load_tensors(path)
        {'state_dict': {'weight': tensor([1., 1.])}, 'epoch': 3}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        content = _load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged files raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f'{path} must be a checkpoint of tensors and plain values, got: {reason}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold a dict of tensors, got {type(content).__name__}')
    return content


def is_torchscript(path: str | os.PathLike) -> bool:
    """Return whether a file is a TorchScript archive, which carries code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith('/constants.pkl') or '/code/' in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _load(path: Path):
    with open(path, 'rb') as file:
        start = file.read(16)
        file.seek(0)
        if start[:4] == b'PK\x03\x04':
            with zipfile.ZipFile(file) as archive:
                return _Archive(archive, os.fstat(file.fileno()).st_size).load()
        if start[8:9] == b'{' or path.suffix == '.safetensors':
            return _read_safetensors(path)
        if not start.startswith(b'\x80'):  # the pickles of torch before 1.6; its tar files are older still
            raise ValueError('a file that torch did not write, or a tar of torch 0.1')
        with _namespaces_allowed():
            return torch.load(file, map_location='cpu', weights_only=True)


@contextlib.contextmanager
def _namespaces_allowed() -> Iterator[None]:
    """Let ``torch.load`` read the options of a command line; afterwards what the caller allows is as it was."""
    serialization = torch.serialization
    if hasattr(serialization, 'safe_globals'):
        with serialization.safe_globals([argparse.Namespace]):
            yield
        return
    before = list(serialization.get_safe_globals())  # torch 2.4
    serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the format of safetensors: the length of a head, the head in JSON, and the numbers."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], 'little')
    if start > len(content):
        raise ValueError('a safetensors file that is cut off')
    head, numbers, found = json.loads(content[8:start]), memoryview(content)[start:], {}
    head.pop('__metadata__', None)
    for name, entry in head.items():
        dtype, shape, (first, last) = _SAFETENSORS[entry['dtype']], entry['shape'], entry['data_offsets']
        size = math.prod(shape) * torch.empty((), dtype=dtype).itemsize
        if not 0 <= first <= last <= len(numbers) or last - first != size or min(shape, default=0) < 0:
            raise ValueError(f'a tensor {name} of shape {shape} in {last - first} bytes')
        found[name] = (
            torch.frombuffer(bytearray(numbers[first:last]), dtype=dtype) if size else torch.zeros(0, dtype=dtype)
        )
        found[name] = found[name].reshape(shape)
    return found


class _Archive:
    """A zip that torch wrote: ``<root>/data.pkl``, ``<root>/data/<key>`` and, for TorchScript, ``<root>/code``."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive, self.size = archive, size
        self.storages: dict[str, bytearray] = {}
        roots = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise ValueError(f'a zip with {len(roots)} files */data.pkl, where torch writes one')
        self.root = roots[0][: -len('data.pkl')]

    def load(self):
        if f'{self.root}byteorder' in self.archive.namelist() and self.read('byteorder') != b'little':
            raise ValueError('numbers in another byte order; save it again on a machine of this kind')
        content = _Unpickler(io.BytesIO(self.read('data.pkl')), self).load()
        return self.state_dict(content) if isinstance(content, _Module) else _plain(content)

    def read(self, name: str) -> bytes:
        info = self.archive.getinfo(self.root + name)
        # torch stores and never packs: what is packed may be any size.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.size:
            raise ValueError(f'the record {name} is packed, where torch stores it')
        return self.archive.read(info)

    def storage(self, key: str, dtype: torch.dtype) -> Tensor:
        if key not in self.storages:
            self.storages[key] = bytearray(self.read(f'data/{key}'))
        content = self.storages[key]
        if not content:
            return torch.zeros(0, dtype=dtype)
        return torch.frombuffer(content, dtype=dtype, count=len(content) // torch.empty((), dtype=dtype).itemsize)

    def state_dict(self, module: '_Module') -> dict[str, Tensor]:
        found, left, visited = {}, [('', module)], 0
        while left:
            prefix, module = left.pop()
            visited += 1
            if visited > _MOST_MODULES or prefix.count('.') > _MOST_LEVELS:
                raise ValueError('modules within themselves, or too many')
            kept = self.kept_names(type(module))
            for name, value in module.state.items():
                if isinstance(value, _Module):
                    left.append((f'{prefix}{name}.', value))
                elif isinstance(value, Tensor) and (kept is None or name in kept):
                    found[prefix + name] = value
        return found

    def kept_names(self, kind: type['_Module']) -> set[str] | None:
        """Parameters and buffers of a class, read as text from its source; None where that does not say."""
        if 'kept' not in vars(kind):
            name = f'{self.root}code/{kind.module.replace(".", "/")}.py'
            kind.kept = None
            if name in self.archive.namelist():
                kind.kept = _declared(self.archive, name, self.size, kind.name)
        return kind.kept


def _declared(archive: zipfile.ZipFile, file: str, size: int, name: str) -> set[str] | None:
    info = archive.getinfo(file)
    if info.file_size > max(size, 2**24):
        raise ValueError(f'the source {file} is larger than the file it is in')
    source = archive.read(info).decode('utf-8', 'replace')
    found = re.search(rf'^class {re.escape(name)}\(Module\):\n((?:  .*\n|\n)*)', source, re.MULTILINE)
    if found is None:
        return set()  # a class that is no module holds no weights
    lists = dict(re.findall(r'^  (__parameters__|__buffers__) = \[(.*)\]$', found[1], re.MULTILINE))
    if len(lists) < 2:
        return None  # before torch 1.7
    return set(re.findall(r'"([^"]*)"', ' '.join(lists.values())))


class _Module:
    """Stands for a module of a TorchScript archive: its attributes, and none of its code."""

    module: ClassVar[str] = ''
    name: ClassVar[str] = ''
    kept: ClassVar[set[str] | None]  # of each subclass its own, once it was asked for
    state: dict[str, object] = {}

    def __setstate__(self, state) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError('a module without a dict of attributes')
        self.state = state


class _Options:
    """Stands for the options of a command line, which timm keeps in its checkpoints; it becomes a dict."""

    values: dict = {}

    def __setstate__(self, state) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError('options of a command line that are no dict')
        self.values = state


class _Call:
    """A function that a pickle may call; nothing can be set on it."""

    __slots__ = ('function',)

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError('a change of a function')


_load_build: Callable[..., None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python, whose memo does not grow to an index that the file names, for torch's own names alone.

    Instructions that torch does not write are unknown to it.
    """

    stack: list  # what pickle._Unpickler sets when it starts to load, and its stubs do not name

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: method
        for code, method in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.PERSID, pickle.BYTEARRAY8,
            pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX,
        )
    }  # fmt: skip

    def __init__(self, file, archive: _Archive):
        super().__init__(file, encoding='utf-8')
        self.archive = archive
        self.kinds: dict[tuple[str, str], type[_Module]] = {}

    def load_build(self) -> None:
        """Set attributes of modules and dicts alone: tensors and functions have states that reach further."""
        if not isinstance(self.stack[-2], _Module | _Options | OrderedDict):
            raise pickle.UnpicklingError(f'a state for {type(self.stack[-2]).__name__}')
        _load_build(self)

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str):
        if module.split('.')[0] == '__torch__':
            key = (module, name)
            if key not in self.kinds:
                self.kinds[key] = type('Module', (_Module,), dict(module=module, name=name))
            return self.kinds[key]
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        if module == 'torch' and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if (module, name) == ('torch', 'Size'):
            return _Call(lambda sizes: tuple(sizes) if isinstance(sizes, list | tuple) else ())
        if module == 'torch._utils' and name in ('_rebuild_tensor_v2', '_rebuild_tensor_v3'):
            return _Call(self.tensor)
        if module == 'torch._utils' and name == '_rebuild_parameter':
            return _Call(lambda tensor, *_: tensor)
        if module == 'torch.jit._pickle' and name in _LISTS:
            return _Call(lambda values, *_: values)
        if (module, name) == ('collections', 'OrderedDict'):
            return _Call(OrderedDict)
        if (module, name) == ('argparse', 'Namespace'):
            return _Options
        raise pickle.UnpicklingError(f'it names {module}.{name}, which is neither a tensor nor a plain value')

    def persistent_load(self, identity):
        kind, dtype, key, *_ = identity
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f'a record of another kind: {kind!r}')
        return _Record(key, dtype)

    def tensor(self, record, offset, size, stride, _gradient=False, _hooks=None, dtype=None, *_) -> Tensor:
        if not isinstance(record, _Record) or not isinstance(dtype, torch.dtype | None):
            raise pickle.UnpicklingError('a tensor without a record')
        numbers = [offset, *size, *stride]
        if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
            raise pickle.UnpicklingError(f'a tensor of size {size} and stride {stride} from {offset}')
        dtype = record.dtype if dtype is None else dtype
        values = self.archive.storage(record.key, dtype)
        count = math.prod(size)
        if not count:
            return torch.zeros(size, dtype=dtype)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if last >= len(values) or count * values.itemsize > max(self.archive.size, 2**20):
            raise pickle.UnpicklingError(f'a tensor of size {size} in a record of {len(values)} numbers')
        return values.as_strided(size, stride, offset)


class _Record:
    """The numbers of tensors, under their key in the archive."""

    __slots__ = ('dtype', 'key')

    def __init__(self, key: str, dtype: torch.dtype):
        self.key, self.dtype = key, dtype

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError('a change of a record')


def _plain(value, depth: int = 0, left: list[int] | None = None):
    """Check that only tensors and plain values came out, and put plain dicts in the place of ordered ones."""
    left = [_MOST_VALUES] if left is None else left
    left[0] -= 1
    if depth > _MOST_LEVELS or left[0] < 0:
        raise ValueError('containers within themselves, or too many')
    if isinstance(value, _Options):
        value = value.values
    if isinstance(value, dict):
        return {key: _plain(each, depth + 1, left) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, depth + 1, left) for each in value)
    if value is None or isinstance(value, Tensor | torch.dtype | bool | int | float | complex | str | bytes | set):
        return value
    raise ValueError('a value that is neither a tensor nor plain')
