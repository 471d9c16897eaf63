# SPDX-License-Identifier: Apache-2.0
"""Reading pickles as data: plain containers and NumPy arrays of numbers or strings, and nothing else of the file."""

import io
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

_KINDS = 'biufcSU'  # bool, integers, floats, complex, bytes, strings: no objects, no records
_MULTIARRAY = ('numpy.core.multiarray', 'numpy._core.multiarray')
_NUMERIC = ('numpy.core.numeric', 'numpy._core.numeric')


def load_restricted(path: str | os.PathLike):
    """Read a pickle file without running anything that it names.

    Args:
        path: The file.

    Returns:
        What was pickled: dicts, lists, tuples, sets, strings, bytes, numbers, None, NumPy arrays and scalars.

    Raises:
        ValueError: If the file is cut off, no pickle, or holds anything else; the file and the name are in the text.
        OSError: As ``open`` raises it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'infos.pkl')
        >>> _ = path.write_bytes(pickle.dumps(dict(boxes=np.ones((2, 7)))))
        >>> load_restricted(path)['boxes'].shape
        (2, 7)
    """
    return loads_restricted(Path(path).read_bytes(), os.fspath(path))


def loads_restricted(content: bytes, name: str = 'the pickle'):
    """As :func:`load_restricted`, for the bytes of a pickle; ``name`` stands for it in messages."""
    try:
        return _resolve(_Unpickler(io.BytesIO(content)).load(), {})
    # What a damaged or hostile stream of instructions can raise in the unpickler is not limited to its own error.
    except Exception as error:
        raise ValueError(
            f'{name} is not a pickle of plain containers and NumPy arrays of numbers or strings ({error}); it was not '
            'read any further. Write it again from the data it was made of'
        ) from error


class _Unpickler(pickle._Unpickler):
    """Answers the few names that NumPy writes with stand-ins; their real owners are never called.

    The unpickler in Python: the memo of the other one grows to any index that the file names.
    """

    # what pickle._Unpickler sets when it starts to load, and its stubs do not name
    read: Callable[[int], bytes]
    append: Callable[[object], None]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: method
        for code, method in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)
    }

    def load_bytes(self) -> None:
        """Read bytes that can be changed, as NumPy's arrays are in protocol 5: no more than the file has."""
        size = int.from_bytes(self.read(8), 'little')
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytes

    def find_class(self, module: str, name: str):
        if module in _MULTIARRAY and name == '_reconstruct':
            return _Array.reconstruct
        if module in _MULTIARRAY and name == 'scalar':
            return _scalar
        if module in _NUMERIC and name == '_frombuffer':
            return _from_buffer
        if module == 'numpy' and name == 'dtype':
            return _Type
        if module == 'numpy' and name == 'ndarray':
            return _Marker
        if (module, name) == ('collections', 'OrderedDict'):
            return _plain_dict
        if (module, name) == ('_codecs', 'encode'):  # bytes in pickles of protocol 2
            return _latin1
        if module in ('builtins', '__builtin__') and name in _BUILTINS:
            return _BUILTINS[name]
        raise pickle.UnpicklingError(f'it names {module}.{name}, which is neither')


class _Marker:
    """Stands for ``numpy.ndarray`` as an argument; it cannot be called."""

    def __new__(cls, *_, **__):
        raise pickle.UnpicklingError('it builds an array over addresses of its own')


class _Type:
    """A dtype by its text, of one number or string; the byte order comes afterwards."""

    def __init__(self, text: str, *_):
        if not isinstance(text, str) or np.dtype(text).kind not in _KINDS or np.dtype(text).shape:
            raise pickle.UnpicklingError(f'it holds an array of type {text!r}')
        self.dtype = np.dtype(text)

    def __setstate__(self, state) -> None:
        order, _, names, fields = state[1:5]
        if names or fields or order not in ('<', '>', '|', '='):
            raise pickle.UnpicklingError('it holds an array of records')
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array whose shape, type and bytes are still to come."""

    @classmethod
    def reconstruct(cls, *_):
        return cls()

    def __setstate__(self, state) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.value = _from_buffer(raw, dtype, shape, 'F' if fortran else 'C')


def _from_buffer(raw, dtype, shape, order='C') -> np.ndarray:
    if not isinstance(dtype, _Type) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError('it holds an array of objects')
    shape = tuple(int(size) for size in (shape if isinstance(shape, tuple | list) else (shape,)))
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise pickle.UnpicklingError(f'it holds an array of shape {shape} in {len(raw)} bytes')
    if not dtype.dtype.itemsize:  # strings of no characters, which frombuffer does not read
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order='F' if order == 'F' else 'C').copy()


def _scalar(dtype, raw=b''):
    return _from_buffer(raw, dtype, (1,))[0]


def _plain_dict(items=()) -> dict:
    return dict(items)


def _latin1(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != 'latin1':
        raise pickle.UnpicklingError('it encodes what is no text')
    return text.encode('latin1')


def _no_bytes() -> bytes:  # with a number it would ask for that much memory
    return b''


# how older protocols write values that are no instruction of their own
_BUILTINS = {'set': set, 'frozenset': frozenset, 'complex': complex, 'bytes': _no_bytes}


def _resolve(value, seen: dict):
    """Put the arrays in the place of their stand-ins, in containers of any depth."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Type | type) or callable(value):
        raise pickle.UnpicklingError('it holds a type or a function as a value')
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        result = tuple(_resolve(each, seen) for each in value)
        seen[id(value)] = value, result  # the value is kept, so that its id is not given to another
        return result
    seen[id(value)] = value, value
    if isinstance(value, list):
        value[:] = [_resolve(each, seen) for each in value]
    else:
        for key in value:
            value[key] = _resolve(value[key], seen)
    return value
