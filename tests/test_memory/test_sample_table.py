# SPDX-License-Identifier: Apache-2.0
"""SampleTable: rows by index, saved with the model, the same on all ranks."""

import numpy as np
import pytest
import torch
from torch import nn

from clusterplug.memory import SampleTable
from clusterplug.registry import MODELS
from clusterplug.testing.distributed import run_gloo


def test_columns_of_every_kind():
    table = SampleTable(3, {
        'label': -1, 'weight': 1.0, 'seen': False, 'code': torch.int16, 'kind': 'uint8', 'first': np.array([3, 4, 5]),
        'top': dict(dtype='int64', shape=2, fill=-1), 'feature': dict(shape=(2, 2)),
    })  # fmt: skip
    types = ['int64', 'float32', 'bool', 'int16', 'uint8', 'int64', 'int64', 'float32']
    assert [str(table[name].dtype) for name in table.names] == [f'torch.{each}' for each in types]
    assert table['label'].tolist() == [-1] * 3
    assert table['first'].tolist() == [3, 4, 5]
    assert table['top'].tolist() == [[-1, -1]] * 3
    assert table['feature'].shape == (3, 2, 2)
    assert SampleTable(2, ['a', 'b'])['b'].dtype == torch.float32
    assert (len(table), 'label' in table, 'x' in table) == (3, True, False)


def test_read_and_write():
    table = SampleTable(5, dict(label=-1, weight=1.0))
    table.write(np.array([4, 1]), label=[7, 8], weight=torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert table.read([1, 4, 0], 'label').tolist() == [8, 7, -1]
    both = table.read(torch.tensor([4]))
    assert both['label'].tolist() == [7]
    assert both['weight'].tolist() == [0.5]
    assert table.written.tolist() == [False, True, False, False, True]
    table.write([0, 2], label=3)
    assert table['label'].tolist() == [3, 8, 3, -1, 7]
    table.write([2, 2, 2, 0, 2], label=[1, 2, 3, 4, 5])
    assert table.read([2, 0], 'label').tolist() == [5, 4]
    table.write([], label=[])
    assert table.read([], 'label').shape == (0,)


def test_saved_moved_and_cast_with_its_model():
    model = MODELS.build(dict(type='SampleTable', num_samples=4, columns=dict(label=-1, weight=1.0)))
    model.write([3], label=2, weight=1 / 3)
    fresh = SampleTable(4, dict(label=-1, weight=1.0))
    fresh.load_state_dict(model.state_dict())
    assert fresh['label'].tolist() == [-1, -1, -1, 2]
    assert fresh.written.tolist() == model.written.tolist()
    half = nn.Sequential(fresh).half()[0]
    assert half['weight'].dtype == torch.float32
    assert half['weight'][3] == np.float32(1 / 3)
    assert (
        SampleTable(1, dict(weight=[1 / 3], wide=torch.tensor([1 / 3]).double())).half()['wide'].dtype == torch.float64
    )
    with pytest.raises(RuntimeError, match='size mismatch'):
        SampleTable(5, dict(label=-1, weight=1.0)).load_state_dict(model.state_dict())


@pytest.mark.parametrize(('call', 'error', 'match'), [
    (lambda t: t.read([4], 'label'), ValueError, r'ids must be from 0 to 3, got \[4\]'),
    (lambda t: t.write([-1], label=0), ValueError, 'ids must be from 0 to 3'),
    (lambda t: t.read([0.0], 'label'), TypeError, 'ids must be integers'),
    (lambda t: t.read([[0]], 'label'), ValueError, 'ids must have shape'),
    (lambda t: t.read([0], 'x'), ValueError, "columns label, got 'x'"),
    (lambda t: t.write([0]), ValueError, 'values must be given'),
    (lambda t: t.write([0], label=0.5), TypeError, 'label must hold values of type torch.int64'),
    (lambda t: t.write([0, 1], label=[1, 2, 3]), ValueError, r'label must have shape \(2,\)'),
    (lambda t: SampleTable(0, ['a']), ValueError, 'num_samples'),
    (lambda t: SampleTable(3, {}), ValueError, 'at least one column'),
    (lambda t: SampleTable(3, {'ids': 0}), ValueError, 'columns must have names'),
    (lambda t: SampleTable(3, {'a': [1, 2]}), ValueError, 'one entry a sample, 3'),
    (lambda t: SampleTable(3, {'a': 'int65'}), ValueError, 'name a type'),
    (lambda t: SampleTable(3, {'a': None}), TypeError, 'must be a type'),
    (lambda t: SampleTable(3, {'a': dict(size=3)}), ValueError, 'must have keys'),
])  # fmt: skip
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call(SampleTable(4, dict(label=-1)))


def write_on_rank(rank, world_size):
    table = SampleTable(6, dict(label=-1))
    ids = [0, 2, 4] if rank == 0 else [1]
    table.write(ids, label=[10 * rank + i for i in ids], gather=True)
    return table['label'], table.written


def test_two_ranks_with_different_numbers_of_rows():
    for labels, written in run_gloo(write_on_rank, 2):
        assert labels.tolist() == [0, 11, 2, -1, 4, -1]
        assert written.tolist() == [True, True, True, False, True, False]
