# SPDX-License-Identifier: Apache-2.0
"""Pickles as data: what mmdet3d writes comes back exactly; code, objects and addresses do not."""

import os
import pickle
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from clusterplug.core.restricted_pickle import load_restricted, loads_restricted

RNG = np.random.default_rng(0)
SHARED = np.arange(3)
CONTENT = dict(
    metainfo=OrderedDict(DATASET='x', classes=('a', 'ü')),
    data_list=[dict(a=RNG.normal(size=(2, 3)), b=np.float32(1.5), c=np.array(['car', 'DontCare']), d=None, e=b'\xff')],
    fortran=np.asfortranarray(RNG.normal(size=(2, 3))),
    big=np.arange(3, dtype='>i4'),
    scalar=np.array(4.0),
    empty=np.zeros((0, 4), np.float32),
    words=np.array([], '<U1'),
    flags=(np.array([True, False]), np.int64(-3), {1, 2}, frozenset({3}), 2 + 1j),
    shared=[SHARED, SHARED],
)


def same(one, two):
    if isinstance(two, np.ndarray):
        assert isinstance(one, np.ndarray)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    elif isinstance(two, dict):
        assert list(one) == list(two)
        for key in two:
            same(one[key], two[key])
    elif isinstance(two, list | tuple):
        assert type(one) is type(two)
        for first, second in zip(one, two, strict=True):
            same(first, second)
    else:
        assert one == two
        assert type(one) is type(two)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_comes_back(protocol, tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    same(load_restricted(tmp_path / 'x.pkl'), {**CONTENT, 'metainfo': dict(CONTENT['metainfo'])})


def test_numpy_1_names_and_cycles():
    content = pickle.dumps(np.arange(4.0)).replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    content = content.replace(b'\x8c\x16numpy', b'\x8c\x15numpy')
    content = content[:2] + b'\x95' + (len(content) - 11).to_bytes(8, 'little') + content[11:]
    np.testing.assert_array_equal(loads_restricted(content), np.arange(4.0))
    loop = [1]
    loop.append(loop)
    result = loads_restricted(pickle.dumps(loop))
    assert result[1] is result


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built:
    """What __reduce__ may return besides: a state for the object that was made."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


_RECONSTRUCT = np.zeros(1).__reduce__()[0]


@pytest.mark.parametrize(
    'content',
    [
        Call(os.mkdir, 'CODE_RAN'),
        [dict(x=Call(eval, "__import__('os').mkdir('CODE_RAN')"))],
        Call(getattr, 'x', 'upper'),
        Call(np.ndarray, (2,), np.dtype('O'), b'\x01' * 16),
        np.array([1, 'x', None], dtype=object),
        np.zeros(2, [('a', 'f4'), ('b', 'O')]),
        np.zeros(2, [('a', 'f4')]),
        np.array(['2020-01-01'], 'datetime64[D]'),
        Built(_RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (2,), np.dtype('O'), False, [os, 1])),
        Built(_RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (5,), np.dtype('f8'), False, b'x' * 8)),
        Built(_RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (-1,), np.dtype('f8'), False, b'x' * 8)),
        np.ndarray,
        np.dtype('f4'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_code_objects_and_addresses_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        text = pickle.dumps(content)
    except TypeError:  # a module inside: the name alone will do
        text = pickle.dumps(content, protocol=2) if not isinstance(content, Built) else b'cos\nsystem\n.'
    with pytest.raises(ValueError, match=r'x\.pkl is not a pickle of plain containers'):
        loads_restricted(text, 'x.pkl')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('content', [b'', b'hello', pickle.dumps(CONTENT)[:-20], pickle.dumps(1)[:3]])
def test_cut_off_files_are_named(content, tmp_path):
    (tmp_path / 'infos.pkl').write_bytes(content)
    with pytest.raises(ValueError, match=r'infos\.pkl is not a pickle'):
        load_restricted(tmp_path / 'infos.pkl')
    with pytest.raises(FileNotFoundError):
        load_restricted(tmp_path / 'nothing.pkl')


def test_sizes_that_a_file_claims_take_no_memory():
    tracemalloc.start()
    try:
        claimed = b'\xff\xff\xff\x7f'  # 2 GB
        assert loads_restricted(b'\x80\x02Nr' + claimed + b'.') is None  # place in the memo
        for code in (pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.BINUNICODE8):
            with pytest.raises(ValueError, match='is not a pickle of plain'):
                loads_restricted(b'\x80\x05' + code + claimed + bytes(4) + b'abc.')
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
