# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's pickle may name and do: weights, numbers, text and mmengine's own records, and nothing else.

It stands where ``torch.load(weights_only=True)`` has its own unpickler. That one lets a file call everything that is
on its list and hand any state to the result, so a list with NumPy's arrays and types on it gives a file arrays of
objects over bytes of its own choice. Here the names of NumPy are functions that take plain numbers and strings only,
and state is checked before it is set.
"""

import math
import pickle
import re

import numpy as np
import torch
from torch import _weights_only_unpickler as torchs

_PLAIN_TYPE = re.compile(r'[<>=|]?(\?|[biufcSU][0-9]*)')
_ORDERS = ('<', '>', '=', '|')
# These build through a function or a class that the file chooses.
_CALL_WHAT_THEY_ARE_GIVEN = ('torch._tensor._rebuild_from_type_v2', 'torch._utils._rebuild_wrapper_subclass')
_STATEFUL = 'HistoryBuffer', 'OrderedDict', 'Counter'


class Refused(Exception):
    """The file asks for something that is no data; the text says what.

    No ``UnpicklingError``: torch wraps those into a page of its own advice.
    """


class _Name:
    """A name that a file may mention as an argument; it cannot be called."""

    def __init__(self, owner: type):
        self.owner = owner


def load(file, *, encoding: str = 'utf-8'):
    """What torch calls for the small pickles of old files."""
    return Unpickler(file, encoding=encoding).load()


class Unpickler(pickle._Unpickler):
    """The Python form of the unpickler, with every instruction that calls, builds or fills checked."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._names = _allowed_names()
        self._of_user = _allowed_by_user()
        self._callable = {id(each) for each in [*self._names.values(), *self._of_user.values()] if callable(each)}

    def find_class(self, module, name):
        full = f'{module}.{name}'
        for names in (self._names, self._of_user):
            if full in names:
                return names[full]
        owner, _, attribute = full.rpartition('.')  # protocol 4 names functions of a class with a dot
        if isinstance(self._names.get(owner), _Name):
            return mm_function(self._names[owner], attribute)
        raise Refused(f'{full} is neither weights nor plain data')

    def _reduce(self):
        args, func = self.stack.pop(), self.stack[-1]
        if id(func) not in self._callable or not isinstance(args, tuple):
            raise Refused(f'it calls {func!r:.80}')
        self.stack[-1] = func(*args)

    def _newobj(self):
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(_new(cls, self._of_user, args))

    def _build(self):
        inst, kind = self.stack[-2], type(self.stack[-2])
        if isinstance(inst, np.dtype):
            _set_dtype(inst, self.stack.pop())
        elif kind is np.ndarray:
            _set_array(inst, self.stack.pop())
        elif kind.__name__ in _STATEFUL and kind in self._classes():
            _set_attributes(inst, self.stack.pop())
        elif kind in self._of_user.values():
            super().load_build()
        else:
            raise Refused(f'it sets the state of a {kind.__module__}.{kind.__qualname__}')

    def _classes(self):
        owners = [each.owner if isinstance(each, _Name) else each for each in self._names.values()]
        return [each for each in owners if isinstance(each, type)]

    def _filled(host, position, kinds):
        def fill(self):
            target = self.metastack[-1][-1] if position is None else self.stack[position]
            if not isinstance(target, kinds):
                raise Refused(f'it fills a {type(target).__qualname__}')
            host(self)

        return fill

    def _persistent(self):
        pid = self.stack.pop()
        kind = pid[0] if isinstance(pid, tuple) and pid else pid
        if not isinstance(pid, int) and kind not in ('storage', b'storage'):
            raise Refused(f'it refers to a {kind!r:.40} outside of the pickle')
        self.append(self.persistent_load(pid))

    def _bytes_to_change(self):
        # No more than the file has, whatever length it claims.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), 'little'))))

    def _unsupported(self):
        raise Refused('it holds an instruction that weights and plain data do not need')

    hosts = pickle._Unpickler
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.BYTEARRAY8[0]] = _bytes_to_change
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BINPERSID[0]] = _persistent
    dispatch[pickle.APPEND[0]] = _filled(hosts.load_append, -2, list)
    dispatch[pickle.APPENDS[0]] = _filled(hosts.load_appends, None, list)
    dispatch[pickle.SETITEM[0]] = _filled(hosts.load_setitem, -3, dict)
    dispatch[pickle.SETITEMS[0]] = _filled(hosts.load_setitems, None, dict)
    dispatch[pickle.ADDITEMS[0]] = _filled(hosts.load_additems, None, set)
    for code in (
        pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID,
        pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    ):  # fmt: skip
        dispatch[code[0]] = _unsupported
    del code, hosts, _filled


def mm_function(owner, name: str):
    """Stand in for ``getattr``, through which pickle finds functions that mmengine keeps in a class.

    These are a history's statistics (min, max, current, mean) and the curve of a one-cycle schedule.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    owner = owner.owner if isinstance(owner, _Name) else owner
    HistoryBuffer()  # the first history of a process fills the table of statistics
    if owner is HistoryBuffer and name in HistoryBuffer._statistics_methods:
        return HistoryBuffer._statistics_methods[name]
    if owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(OneCycleParamScheduler, name)
    raise Refused(f'it reaches for {name!r} of {owner!r:.80}')


def _allowed_names() -> dict:
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    names = {k: v for k, v in torchs._get_allowed_globals().items() if k not in _CALL_WHAT_THEY_ARE_GIVEN}
    names['torch._tensor._rebuild_from_type_v2'] = _tensor_with_attributes
    names['mmengine.config.config.ConfigDict'] = ConfigDict
    for owner in (HistoryBuffer, OneCycleParamScheduler):
        names[f'{owner.__module__}.{owner.__qualname__}'] = _Name(owner)
    names['numpy.ndarray'] = _Name(np.ndarray)
    names['numpy.dtype'] = _dtype
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and numpy 2
        names[f'{core}.multiarray._reconstruct'] = _empty_array
        names[f'{core}.multiarray.scalar'] = _scalar
        names[f'{core}.numeric._frombuffer'] = _from_buffer  # protocol 5
    names['copyreg._reconstructor'] = names['copy_reg._reconstructor'] = _new_of_old_protocols
    names['_codecs.encode'] = _latin1
    for module in ('builtins', '__builtin__'):
        # Pickle writes the statistics as getattr(HistoryBuffer, 'min'); the true getattr would reach anything.
        names[f'{module}.getattr'] = mm_function
        names[f'{module}.object'] = _Name(object)
        names |= {f'{module}.set': set, f'{module}.frozenset': frozenset, f'{module}.complex': complex}
        names |= {f'{module}.bytes': _bytes, f'{module}.bytearray': _bytearray}
    return names


def _allowed_by_user() -> dict:
    """What the user gave to ``torch.serialization.add_safe_globals``, by name."""
    found = getattr(torchs, '_get_safe_globals', list)()
    pairs = [each if isinstance(each, tuple) else (each, f'{each.__module__}.{each.__qualname__}') for each in found]
    return {name: value for value, name in pairs}


def _new(cls, of_user: dict, args: tuple):
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer

    if isinstance(cls, _Name) and cls.owner is HistoryBuffer and not args:
        return HistoryBuffer.__new__(HistoryBuffer)
    if cls is ConfigDict and not args:
        return ConfigDict()
    if cls in (set, frozenset, complex) or any(cls is each for each in of_user.values()):
        return cls.__new__(cls, *args)
    raise Refused(f'it makes an object of {cls!r:.80}')


def _new_of_old_protocols(cls, base, state):
    if not isinstance(base, _Name) or base.owner is not object or state is not None:
        raise Refused(f'it makes an object of {cls!r:.80}')
    return _new(cls, {}, ())


def _set_attributes(inst, state) -> None:
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise Refused(f'it sets a {type(inst).__name__} to what is no table of attributes')
    inst.__dict__.update(state)


def _tensor_with_attributes(build, kind, args, state):
    builders = [f for name, f in torchs._get_allowed_globals().items() if name.startswith('torch._utils._rebuild')]
    if not any(build is each for each in builders) or kind not in (torch.Tensor, torch.nn.Parameter):
        raise Refused(f'it builds a {kind!r:.60} with {build!r:.60}')
    return torch._tensor._rebuild_from_type_v2(build, kind, args, state)


def _dtype(text, *_):
    # A copy: the state that follows would otherwise change NumPy's own type.
    if not isinstance(text, str) or not _PLAIN_TYPE.fullmatch(text):
        raise Refused(f'it holds values of the NumPy type {text!r:.40}, numbers and strings are read')
    return np.dtype(text, copy=True)


def _set_dtype(dtype: np.dtype, state) -> None:
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in _ORDERS or any(state[2:5]):
        raise Refused('it holds an array of records')
    size = (dtype.itemsize, dtype.alignment, dtype.flags) if dtype.kind in 'SU' else (-1, -1, 0)
    dtype.__setstate__((3, state[1], None, None, None, *size))


def _plain(dtype) -> np.dtype:
    if not isinstance(dtype, np.dtype) or not _PLAIN_TYPE.fullmatch(dtype.str):
        raise Refused(f'it holds values of the NumPy type {dtype!r:.60}, numbers and strings are read')
    return np.dtype(dtype.str)


def _empty_array(kind, shape=(0,), code=b'b'):
    if not isinstance(kind, _Name) or kind.owner is not np.ndarray or shape != (0,):
        raise Refused(f'it makes an array of {kind!r:.60}')
    return np.empty(0, np.int8)


def _set_array(array: np.ndarray, state) -> None:
    if not isinstance(state, tuple) or len(state) != 5:
        raise Refused('it holds an array without shape and type')
    _, shape, dtype, fortran, raw = state
    dtype = _plain(dtype)
    _check_size(shape, dtype, raw)
    array.__setstate__((1, shape, dtype, bool(fortran), bytes(raw)))


def _from_buffer(raw, dtype, shape, order='C') -> np.ndarray:
    dtype = _plain(dtype)
    _check_size(shape, dtype, raw)
    if not dtype.itemsize:  # strings of no characters, which frombuffer does not read
        return np.zeros(shape, dtype)
    return np.frombuffer(bytearray(raw), dtype).reshape(shape, order='F' if order == 'F' else 'C')


def _scalar(dtype, raw=b''):
    array = np.empty(0, np.int8)
    _set_array(array, (1, (1,), dtype, False, raw))
    return array[0]


def _check_size(shape, dtype: np.dtype, raw) -> None:
    sizes = shape if isinstance(shape, tuple) else ()
    good = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in sizes)
    if not good or not isinstance(raw, bytes | bytearray) or math.prod(sizes) * dtype.itemsize != len(raw):
        raise Refused(f'it holds an array of shape {shape!r:.60} and type {dtype} that its bytes do not fill')


def _latin1(text, encoding='latin1') -> bytes:
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise Refused('it encodes what is no text')
    return text.encode('latin1')


def _bytes(*args) -> bytes:
    if args:  # a number would ask for that much memory
        raise Refused('it makes bytes of something else')
    return b''


def _bytearray(content=b'', encoding='latin-1') -> bytearray:
    if isinstance(content, str):
        return bytearray(_latin1(content, encoding))
    if not isinstance(content, bytes | bytearray):
        raise Refused('it makes bytes of something else')
    return bytearray(content)
