# SPDX-License-Identifier: Apache-2.0
"""Tensors of checkpoints and TorchScript archives as torch reads them itself, and nothing of a file ever runs."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from clusterplug.core.tensor_files import is_torchscript, load_tensors


class Toy(nn.Module):
    """A CLIP in small: two towers, a scale, shared and transposed weights, buffers, lists and plain tensors."""

    def __init__(self, half: bool = False):
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)])
        self.blocks[1].weight = self.blocks[0].weight
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.proj = nn.Parameter(torch.randn(6, 4).mT)
        self.register_buffer('resolution', torch.tensor(224))
        self.register_buffer('mask', torch.ones(1, 3).expand(5, 3)[1:], persistent=False)
        self.note = torch.ones(7)  # neither a parameter nor a buffer
        self.sizes, self.names = [3, 4], ['a', 'b']
        if half:
            self.half()

    def forward(self, x):
        total = self.note.sum() + self.logit_scale + len(self.sizes) + len(self.names) + self.mask.sum()
        return self.blocks[2](self.blocks[1](self.blocks[0](self.visual(x).mean((2, 3))))) + total


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
        assert not found[name].requires_grad


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('kind', ['script', 'trace'])
def test_torchscript_is_what_torch_loads(tmp_path, half, kind):
    torch.manual_seed(0)
    toy = Toy(half).eval()
    path = tmp_path / 'toy.anything'
    if kind == 'trace' and half:
        module = torch.jit.trace_module(toy, dict(forward=torch.zeros(1, 3, 4, 4).half()), check_trace=False)
    elif kind == 'trace':
        module = torch.jit.trace(toy, torch.zeros(1, 3, 4, 4))
    else:
        module = torch.jit.script(toy)
    module.save(str(path))
    same(load_tensors(path), torch.jit.load(path).state_dict())
    assert is_torchscript(path)


@pytest.mark.parametrize('old_format', [False, True])
def test_checkpoints_are_what_torch_loads(tmp_path, old_format):
    torch.manual_seed(0)
    kinds = (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    state = Toy().state_dict() | {str(kind): torch.arange(5).to(kind) for kind in kinds}
    state |= dict(empty=torch.zeros(0, 3), scalar=torch.tensor(5), strided=torch.arange(24.0).view(4, 6)[1::2, ::3])
    content = dict(state_dict=state, epoch=3, names=['a', ('b', 2.5)], size=torch.Size([3, 4]), none=None)
    path = tmp_path / 'x.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    found, expected = load_tensors(path), torch.load(path, weights_only=True)
    same(found.pop('state_dict'), expected.pop('state_dict'))
    assert found == expected | dict(size=found['size'])
    assert tuple(found['size']) == (3, 4)
    assert not is_torchscript(path)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch', reason='needs safetensors').save_file
    kinds = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.int8)
    state = {str(kind): torch.arange(6).to(kind).view(2, 3) for kind in kinds}
    state |= dict(scalar=torch.tensor(3), empty=torch.zeros(0, 4))
    save_file(state, tmp_path / 'x.bin', metadata=dict(format='pt'))
    same(load_tensors(tmp_path / 'x.bin'), state)
    whole = (tmp_path / 'x.bin').read_bytes()
    for content in (whole[:-1], whole[:20], b'\xff' * 8 + whole[8:], whole.replace(b'[2,3]', b'[2,4]')):
        (tmp_path / 'x.safetensors').write_bytes(content)
        with pytest.raises(ValueError, match=r'x\.safetensors must be a checkpoint'):
            load_tensors(tmp_path / 'x.safetensors')


class Running(nn.Module):
    """Code of the file that runs while torch reads it."""

    def __init__(self):
        super().__init__()
        self.register_buffer('weight', torch.ones(3))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print('MARK: code of the file ran')
        self.weight = state[0]
        self.training = state[1]


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Running()

    def forward(self, x):
        return self.part(x)


@pytest.mark.parametrize('kind', [Running, Inside])
@pytest.mark.parametrize('name', ['a.pt', 'a.pth', 'a.bin', 'a.safetensors', 'a'])
def test_no_code_of_an_archive_runs(tmp_path, kind, name, capfd):
    path = tmp_path / name
    torch.jit.script(kind()).save(str(path))
    with pytest.raises(ValueError, match='a module without a dict'):
        load_tensors(path)
    assert 'MARK' not in capfd.readouterr().out
    torch.jit.load(path)
    assert 'MARK' in capfd.readouterr().out  # torch's own loader does run it


class Evil:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def archive(path, pickled, **records):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('x/data.pkl', pickled)
        for name, content in records.items():
            file.writestr(f'x/data/{name}', content)
    return path


def rebuilt(key=b'0', offset=0, size=(2,), stride=(1,), more=b''):
    """The pickle of {'w': tensor} by hand, as torch writes it."""
    ints = lambda values: b'(' + b''.join(b'J' + struct.pack('<i', v) for v in values) + b't'  # noqa: E731
    record = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX' + struct.pack('<I', len(key)) + key
    record += b'X\x03\0\0\0cpuK\x02tQ'
    tensor = b'ctorch._utils\n_rebuild_tensor_v2\n(' + record + b'J' + struct.pack('<i', offset) + ints(size)
    return b'\x80\x02}X\x01\0\0\0w' + tensor + ints(stride) + b'\x89ccollections\nOrderedDict\n)RtR' + more + b's.'


class TestHostile:
    @pytest.mark.parametrize('protocol', range(6))
    def test_functions_of_any_protocol(self, tmp_path, protocol):
        for content in (
            {'w': Evil(print, 'MARK')}, {'w': Evil(eval, '1')}, {'w': Evil(torch.load, 'x')}, Evil(exec, ''),
            {'w': Evil(getattr, 'text', 'join')}, OrderedDict(w=Evil(torch.jit.load, 'x')),
        ):  # fmt: skip
            pickled = pickle.dumps(content, protocol)
            path = archive(tmp_path / 'x.pt', pickled)
            with pytest.raises(ValueError, match=r'x\.pt must be a checkpoint'):
                load_tensors(path)
            (tmp_path / 'old.pt').write_bytes(pickled)
            with pytest.raises(ValueError, match=r'old\.pt must be a checkpoint'):
                load_tensors(tmp_path / 'old.pt')

    def test_by_hand(self, tmp_path):
        numbers = struct.pack('<2f', 5, 6)
        found = load_tensors(archive(tmp_path / 'x.pt', rebuilt(), **{'0': numbers}))
        same(found, dict(w=torch.tensor([5.0, 6.0])))

    @pytest.mark.parametrize(
        'options',
        [
            dict(offset=1), dict(size=(3,)), dict(offset=-1), dict(stride=(-1,)), dict(size=(2, 2), stride=(1, 1)),
            dict(size=(2_000_000_000,), stride=(0,)), dict(size=(-1,)), dict(key=b'../data.pkl'), dict(key=b'7'),
            dict(size=(2,), stride=(1, 1)), dict(more=b'}X\x01\0\0\0aK\x01sb'), dict(more=b'(K\x01K\x02tR'),
        ],
    )  # fmt: skip
    def test_tensors_outside_of_their_numbers(self, tmp_path, options):
        path = archive(tmp_path / 'x.pt', rebuilt(**options), **{'0': struct.pack('<2f', 5, 6)})
        with pytest.raises(ValueError, match='must be a checkpoint'):
            load_tensors(path)

    @pytest.mark.parametrize(
        'pickled',
        [
            b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'.', b'\x82\x01.',
            b'(i__main__\nx\n.', b'Px\n.', b'', b'}', b'\x80\x02K\x05.',
            b'}' + b'(' * 10**5, b'\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01s\x86b.',
            b']q\0h\0a0}X\x01\0\0\0ah\0s.',
        ],
        ids=range(10),
    )  # fmt: skip
    def test_odd_instructions(self, tmp_path, pickled):
        with pytest.raises(ValueError, match='must'):
            load_tensors(archive(tmp_path / 'x.pt', pickled))

    def test_sizes_that_are_only_claimed(self, tmp_path):
        """A place in the memo and a frame of many gigabytes: neither is set aside."""
        for pickled in (b'\x80\x02}r\xff\xff\xff\x7f.', b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}.'):
            assert load_tensors(archive(tmp_path / 'x.pt', pickled)) == {}

    def test_values_that_multiply(self, tmp_path, monkeypatch):
        monkeypatch.setattr('clusterplug.core.tensor_files._MOST_VALUES', 10_000)
        value = []
        for _ in range(40):
            value = [value, value]
        for content in (dict(a=value), dict(state_dict=[value] * 100)):
            with pytest.raises(ValueError, match='too many'):
                load_tensors(archive(tmp_path / 'x.pt', pickle.dumps(content, 2)))

    def test_modules_within_themselves(self, tmp_path):
        module = b'\x80\x02c__torch__\nM\n)\x81q\0}X\x01\0\0\0mh\0X\x01\0\0\0nh\0ub.'.replace(b'}X', b'}(X')
        with pytest.raises(ValueError, match='within themselves'):
            load_tensors(archive(tmp_path / 'x.pt', module))

    def test_archives(self, tmp_path):
        good = tmp_path / 'good.pt'
        torch.save(dict(w=torch.ones(1000)), good)
        whole = good.read_bytes()
        with zipfile.ZipFile(good) as file, zipfile.ZipFile(tmp_path / 'packed.pt', 'w', zipfile.ZIP_DEFLATED) as out:
            for name in file.namelist():
                out.writestr(name, file.read(name))
        with zipfile.ZipFile(tmp_path / 'two.pt', 'w') as out:
            for root in 'ab':
                out.writestr(f'{root}/data.pkl', b'}.')
        (tmp_path / 'cut.pt').write_bytes(whole[: len(whole) // 2])
        (tmp_path / 'list.pt').write_bytes(archive(tmp_path / 'y.pt', pickle.dumps([1], 2)).read_bytes())
        (tmp_path / 'text.pt').write_text('no checkpoint')
        (tmp_path / 'empty.pt').write_bytes(b'')
        with tarfile.open(tmp_path / 'tar.pt', 'w') as file:
            file.addfile(tarfile.TarInfo('pickle'), io.BytesIO())
        for name in ('packed', 'two', 'cut', 'list', 'text', 'empty', 'tar'):
            with pytest.raises(ValueError, match=rf'{name}\.pt must'):
                load_tensors(tmp_path / f'{name}.pt')
        with pytest.raises(FileNotFoundError, match='no file'):
            load_tensors(tmp_path)
