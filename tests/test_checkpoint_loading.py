# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other models, cut off files, folders that were copied: refused or passed over by name."""

import collections
import os
import pickle
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

mmengine = pytest.importorskip('mmengine')

from mmengine.config import ConfigDict  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402

from clusterplug.checkpoints import (  # noqa: E402
    CheckpointMismatch,
    UnreadableCheckpoint,
    checkpoint_fit,
    load_checkpoint_into,
    newest_readable,
    read_checkpoint,
)
from clusterplug.compat.mmengine.torch_load import load_plain  # noqa: E402


class Segmentor(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
        self.decode_head = nn.Linear(8, classes)


def saved(path, weights, **more):
    torch.save(dict(state_dict=weights, meta=dict(epoch=1, iter=2), **more), path)
    return path


def test_its_own_checkpoint_fills_the_model_without_a_word(tmp_path):
    source, model = Segmentor(), Segmentor()
    weights = {f'module.{key}': value for key, value in source.state_dict().items()}  # as DDP names them
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_checkpoint_into(model, saved(tmp_path / 'a.pth', weights))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


def test_another_model_is_refused_and_both_are_named(tmp_path):
    text = "default_scope = 'mmengine'\nmodel = dict(clip=dict(depth=12), type='clusterplug.CenterCLIP')\n"
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'clip.text.proj': torch.zeros(3)}, meta=dict(cfg=text)), path)
    for partial in (False, True):
        with pytest.raises(CheckpointMismatch, match=r'other\.pth.*0 of 10.*CenterCLIP.*clip.*Segmentor.*backbone'):
            load_checkpoint_into(Segmentor(), path, partial=partial)


def test_the_text_of_a_config_in_a_checkpoint_is_not_run(tmp_path):
    text = f"import os\nos.mkdir({str(tmp_path / 'made')!r})\nmodel = dict(type='X')\n"
    torch.save(dict(state_dict={'z': torch.zeros(3)}, meta=dict(cfg=text)), tmp_path / 'a.pth')
    pytest.raises(CheckpointMismatch, load_checkpoint_into, Segmentor(), tmp_path / 'a.pth')
    assert not (tmp_path / 'made').exists()


def test_a_part_is_refused_unless_it_is_welcome(tmp_path):
    model, before = Segmentor(), Segmentor()
    model.load_state_dict(before.state_dict())
    path = saved(tmp_path / 'part.pth', {k: v for k, v in Segmentor().state_dict().items() if 'backbone.0' in k})
    with pytest.raises(CheckpointMismatch, match=r'2 of 10 parameters \(20 %\).*missing in the file: .*decode_head'):
        load_checkpoint_into(model, path)
    assert torch.equal(model.backbone[0].weight, before.backbone[0].weight), 'refused before anything was copied'
    with pytest.warns(UserWarning, match=r'2 of 10 parameters \(20 %\)'):
        load_checkpoint_into(model, path, partial=True)
    assert not torch.equal(model.backbone[0].weight, before.backbone[0].weight)


def test_a_head_of_other_classes(tmp_path):
    path = saved(tmp_path / 'a.pth', Segmentor(classes=20).state_dict())
    with pytest.raises(CheckpointMismatch, match=r'decode_head\.weight \(20, 8\) in the file, \(4, 8\) here'):
        load_checkpoint_into(Segmentor(), path)
    with pytest.warns(UserWarning, match=r'8 of 10'):
        load_checkpoint_into(Segmentor(), path, partial=True)


def test_tied_and_lazy_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.LazyLinear(2))
    model[1].weight = model[0].weight
    weights = {'0.weight': torch.zeros(3, 3), '2.weight': torch.zeros(2, 5), '2.bias': torch.zeros(2)}
    fit = checkpoint_fit(model, weights)
    assert (fit.fitting, fit.total, fit.missing) == (3, 3, [])


def junk(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=dict(w=torch.arange(10000.0))), whole)
    np.savez(tmp_path / 'arrays.npz', a=np.zeros(3))
    content = dict(
        text=b'junk of some kind\n' * 9, empty=b'', cut=whole.read_bytes()[:20000], html=b'<!doctype html><p>404',
        npz=(tmp_path / 'arrays.npz').read_bytes(), number=pickle.dumps(3), zeros=bytes(4000), pk=b'PK\x03\x04',
        half=whole.read_bytes()[5000:],
    )  # fmt: skip
    for name, each in content.items():
        (tmp_path / f'{name}.pth').write_bytes(each)
    (tmp_path / 'folder.pth').mkdir()
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save(dict(epoch=3, state_dict=dict(name='x')), tmp_path / 'weightless.pth')
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'script.pth')
    return [*content, 'folder', 'list', 'weightless', 'script']


def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path):
    for name in junk(tmp_path):
        with pytest.raises(UnreadableCheckpoint, match=rf'{name}\.pth (is|holds no)') as error:
            load_checkpoint_into(Segmentor(), tmp_path / f'{name}.pth')
        assert '\n' not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth'):
        read_checkpoint(tmp_path / 'nothing.pth')


class Calls:
    """Pickled as a call, with a state for its result."""

    def __init__(self, function, args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def hostile():
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(1).__reduce__()[0]
    forged = Calls(np.dtype, ('f8', False, True), (3, '<', None, None, None, -1, -1, 63))
    record = Calls(np.dtype, ('V8', False, True), (3, '|', None, ('a',), {'a': (Calls(np.dtype, ('O',)), 0)}, 8, 1, 0))
    return dict(
        objects=np.array([None, 'a'], dtype=object),
        over_bytes=Calls(np.ndarray, ((1,), Calls(np.dtype, ('O',)), bytes(8))),
        offset=Calls(np.ndarray, ((2,), Calls(np.dtype, ('f8',)), bytes(8), 0, (-800,))),
        by_reconstruct=Calls(reconstruct, (np.ndarray, (0,), b'b'), (1, (1,), np.dtype('O'), False, [None])),
        subclass=Calls(reconstruct, (np.matrix, (0,), b'b')),
        large=Calls(reconstruct, (np.ndarray, (10**6,), b'b')),
        too_short=Calls(reconstruct, (np.ndarray, (0,), b'b'), (1, (9,), np.dtype('f8'), False, bytes(8))),
        negative=Calls(reconstruct, (np.ndarray, (0,), b'b'), (1, (-1,), np.dtype('f8'), False, b'')),
        records=np.zeros(2, dtype=[('a', 'f8'), ('b', object)]),
        record_of_objects=Calls(reconstruct, (np.ndarray, (0,), b'b'), (1, (1,), record, False, bytes(8))),
        subarray=np.dtype(('f8', (2,))),
        scalar_object=Calls(scalar, (np.dtype('O'), 3)),
        short_scalar=Calls(scalar, (np.dtype('f8'), b'1')),
        through_torch=Calls(
            torch._tensor._rebuild_from_type_v2, (np.ndarray, torch.Tensor, ((1,), np.dtype('f8'), bytes(8)), {})
        ),
        state_through_torch=Calls(
            torch._tensor._rebuild_from_type_v2, (np.dtype, torch.Tensor, ('f8',), forged.parts[2])
        ),
        code=Calls(os.mkdir, ('made_by_a_checkpoint',)),
        evaluated=Calls(eval, ('1 + 1',)),
        reached=Calls(getattr, (HistoryBuffer, '__init__')),
        dotted=Calls(getattr, (ConfigDict, 'pop')),
        module=nn.Linear(2, 2),
        history_with_code=collections.OrderedDict(a=Calls(print, ('x',))),
    )


@pytest.mark.parametrize('old_format', [False, True])
@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_code_and_objects_are_refused(tmp_path, monkeypatch, protocol, old_format):
    monkeypatch.chdir(tmp_path)
    for name, payload in hostile().items():
        for number, nested in enumerate((payload, [dict(deep=(payload,))])):
            path = tmp_path / f'{name}_{number}.pth'
            torch.save(
                dict(state_dict=dict(w=torch.zeros(1)), extra=nested), path,
                pickle_protocol=protocol, _use_new_zipfile_serialization=not old_format,
            )  # fmt: skip
            with pytest.raises(pickle.UnpicklingError, match=rf'{name}_{number}\.pth holds objects'):
                read_checkpoint(path)
    assert not (tmp_path / 'made_by_a_checkpoint').exists()


def test_a_forged_type_does_not_reach_an_array(tmp_path):
    """Flags that say "objects" on a type of numbers are not believed."""
    reconstruct = np.empty(0).__reduce__()[0]
    forged = Calls(np.dtype, ('f8', False, True), (3, '<', None, None, None, -1, -1, 63))
    array = Calls(reconstruct, (np.ndarray, (0,), b'b'), (1, (1,), forged, False, np.float64(2.5).tobytes()))
    found = read_checkpoint(saved(tmp_path / 'a.pth', dict(w=torch.zeros(1)), extra=array))['extra']
    assert found.tolist() == [2.5]
    assert found.dtype.flags == np.dtype('f8').flags


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('old_format', [False, True])
def test_plain_values_come_back_as_they_were(tmp_path, protocol, old_format):
    history = HistoryBuffer([0.5, 0.25], [1, 2])
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = 'kept'
    values = dict(
        history=history, config=ConfigDict(a=dict(b=[1, (2.5, None)])), text='äöü', raw=b'\x00\xff', empty=b'',
        order=collections.OrderedDict(x=1), numbers=np.arange(6, dtype='>i4').reshape(2, 3).T, flag=np.bool_(True),
        scalar=np.float32(0.5), complex=np.complex128(1 + 2j), names=np.array(['car', 'tree']), none=np.zeros((0, 3)),
        half=np.ones(2, np.float16), bytes=np.array([b'ab', b'c']), dtype=np.dtype('>f4'), sets={1, 2}, big=2**70,
        size=torch.Size([2, 3]), device=torch.device('cpu'), kind=torch.bfloat16, parameter=parameter,
        sparse=torch.eye(3).to_sparse(), strided=torch.arange(6.0).view(2, 3).t(), mutable=bytearray(b'abc'),
        string=np.str_('x'), blank=np.array(['', '']), fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    )  # fmt: skip
    path = tmp_path / 'a.pth'
    torch.save(
        dict(state_dict=dict(w=torch.zeros(1)), values=values), path,
        pickle_protocol=protocol, _use_new_zipfile_serialization=not old_format,
    )  # fmt: skip
    found = read_checkpoint(path)['values']
    assert found.keys() == values.keys()
    assert (found['history'].mean(), found['history'].current()) == (history.mean(), 0.25)
    assert found['parameter'].note == 'kept'
    for key, value in values.items():
        assert type(found[key]) is type(value), key
        if isinstance(value, np.ndarray | np.generic):
            theirs = pickle.loads(pickle.dumps(value, protocol))  # NumPy itself brings some to the machine's byte order
            assert (found[key].dtype, found[key].strides) == (theirs.dtype, theirs.strides), key
            assert np.array_equal(found[key], value), key
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[key].to_dense(), value.to_dense()), key
        elif key != 'history':
            assert found[key] == value, key
    assert found['config'].a.b[1][0] == 2.5


def run_folder(folder, epochs):
    folder.mkdir()
    for epoch in epochs:
        saved(folder / f'epoch_{epoch}.pth', dict(w=torch.full((1,), float(epoch))))
        os.utime(folder / f'epoch_{epoch}.pth', (1000 + epoch, 1000 + epoch))
    (folder / 'last_checkpoint').write_text(str(folder / f'epoch_{epochs[-1]}.pth'))
    return folder


def test_a_copied_folder_goes_on_from_its_own_file(tmp_path):
    first = run_folder(tmp_path / 'first', [1, 2])
    second = tmp_path / 'second'
    shutil.copytree(first, second)
    assert newest_readable(second) == (second / 'epoch_2.pth', [])
    shutil.rmtree(first)  # moved
    assert newest_readable(second)[0] == second / 'epoch_2.pth'


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone', 'weights only'])
def test_the_one_before_is_taken_with_a_reason(tmp_path, damage):
    folder = run_folder(tmp_path / 'run', [9, 10])
    path = folder / 'epoch_10.pth'
    content = path.read_bytes()
    if damage == 'weights only':
        torch.save(Segmentor().state_dict(), path)
    else:
        path.unlink()
    if damage in ('cut', 'empty'):
        path.write_bytes(content[: len(content) // 2 if damage == 'cut' else 0])
    found, reasons = newest_readable(folder)
    assert found == folder / 'epoch_9.pth'
    (reason,) = reasons
    assert 'epoch_10.pth' in reason


def test_an_empty_note_and_no_readable_file(tmp_path):
    folder = run_folder(tmp_path / 'run', [9, 10])
    (folder / 'last_checkpoint').write_text('')
    assert newest_readable(folder) == (folder / 'epoch_10.pth', [])
    for path in folder.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UnreadableCheckpoint, match=r'run holds no checkpoint .*epoch_10\.pth.*epoch_9\.pth'):
        newest_readable(folder)
    assert newest_readable(tmp_path) == (None, [])


def test_a_torchscript_archive_under_two_directories_is_not_run(tmp_path):
    """An archive of weights with a part of TorchScript put into it."""
    path = saved(tmp_path / 'a.pth', dict(w=torch.zeros(1)))
    with zipfile.ZipFile(path, 'a') as archive:
        root = archive.namelist()[0].partition('/')[0]
        archive.writestr(f'{root}/constants.pkl', pickle.dumps(()))
    with pytest.raises(UnreadableCheckpoint, match='TorchScript'):
        read_checkpoint(path)


class Noisy(nn.Module):
    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return 3, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        print('MARK')
        self.training = state[1]


@pytest.mark.parametrize('opened', [False, True])
def test_code_of_an_archive_does_not_run_in_torch_before_2_6(tmp_path, monkeypatch, capfd, opened):
    path = tmp_path / 'a.pth'
    torch.jit.script(Noisy()).save(str(path))

    def load(file, *_, **__):  # what torch did then
        if torch.serialization._is_torchscript_zip(torch._C.PyTorchFileReader(str(path))):
            return torch.jit.load(path)

    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(UnreadableCheckpoint, match='holds code'), open(path, 'rb') as file:
        load_plain(file if opened else path)
    assert 'MARK' not in capfd.readouterr().out
