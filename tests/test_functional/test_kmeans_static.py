# SPDX-License-Identifier: Apache-2.0
"""The fixed-iteration form: compiles, launches few operations, never asks the host, and equals the CPU form."""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clusterplug.functional.kmeans import kmeans

VIEWS = {'view', 'expand', 'unsqueeze', 'slice', 'detach', 'transpose', 'alias', '_unsafe_view', 'select', 'squeeze'}
SYNCHRONISES = {'_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'item', 'masked_select', 'unique'}


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def as_on_device(monkeypatch):
    """Take the path of accelerators on the CPU."""
    for name in ('kmeans', 'kmeans_init', '_assign', '_points'):
        module = importlib.import_module(f'clusterplug.functional.kmeans.{name}')
        monkeypatch.setattr(module, 'host_checks_allowed', lambda tensor: False)


def cases():
    x = randn(3, 80, 6)
    mask = torch.rand(3, 80, generator=torch.Generator().manual_seed(1)) > 0.3
    far = torch.cat([x[:, :3], torch.full((3, 2, 6), 50.0)], 1)  # two clusters start empty
    weights = torch.rand(3, 80, generator=torch.Generator().manual_seed(2))
    return {
        'plain': {'init': x[:, :5].clone()},
        'mask': {'init': x[:, :5].clone(), 'mask': mask},
        'weights': {'init': x[:, :5].clone(), 'weights': weights},
        'empty': {'init': far},
        'empty weights': {'init': far, 'weights': weights, 'mask': mask},
        'kkz': {'init': 'kkz', 'mask': mask},
        'k-means++': {'init': 'k-means++', 'generator': 3},
    }


def seeded(options):
    seed = options.get('generator')
    return options | ({} if seed is None else {'generator': torch.Generator().manual_seed(seed)})


@pytest.mark.parametrize('tol', [0, None, 1e-4])
@pytest.mark.parametrize('case', cases())
def test_device_form_equals_cpu_form(case, tol, request):
    x, options = randn(3, 80, 6), cases()[case]
    expected = kmeans(x, 5, num_iters=12, tol=tol, **seeded(options))
    request.getfixturevalue('as_on_device')
    result = kmeans(x, 5, num_iters=12, tol=tol, **seeded(options))
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.centers, expected.centers, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.inertia, expected.inertia, rtol=1e-4, atol=1e-5)
    assert torch.equal(result.num_iters, expected.num_iters)


@pytest.mark.parametrize('case', [name for name in cases() if name != 'k-means++'])
def test_compiles_without_graph_break(case):
    x, options = randn(3, 80, 6), cases()[case]
    expected = kmeans(x, 5, num_iters=4, tol=0, **options)
    compiled = torch.compile(
        lambda points: kmeans(points, 5, num_iters=4, tol=0, **options), fullgraph=True, backend='aot_eager'
    )
    result = compiled(x)
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.centers, expected.centers, rtol=1e-4, atol=1e-5)


def test_compiles_with_random_start():
    x = randn(3, 80, 6)
    compiled = torch.compile(lambda points: kmeans(points, 5, num_iters=9, tol=0), fullgraph=True, backend='aot_eager')
    result = compiled(x)
    assert result.inertia.isfinite().all()
    assert (result.inertia < 0.9 * x.sub(x.mean(1, keepdim=True)).square().sum((-2, -1))).all()


@pytest.mark.parametrize('case', cases())
def test_no_synchronisation_and_constant_launches(case, as_on_device):
    x, options = randn(3, 80, 6), cases()[case]
    names = []
    for num_iters in (4, 14):
        with Recorder() as recorder:
            kmeans(x, 5, num_iters=num_iters, tol=0, **seeded(options))
        assert not SYNCHRONISES & set(recorder.names)
        names.append([name for name in recorder.names if name not in VIEWS])
    per_iteration = (len(names[1]) - len(names[0])) / 10
    assert per_iteration <= 12


def test_blocks_of_the_device_form(as_on_device, monkeypatch):
    x, init = randn(2, 300, 4), randn(6, 4, seed=1)
    whole = kmeans(x, 6, init=init, num_iters=8, tol=0)
    monkeypatch.setattr(importlib.import_module('clusterplug.functional.kmeans._assign'), 'CPU_BLOCK_BYTES', 3000)
    split = kmeans(x, 6, init=init, num_iters=8, tol=0)
    assert torch.equal(split.labels, whole.labels)
    torch.testing.assert_close(split.centers, whole.centers, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda_graph_capture_and_no_synchronisation():
    x = randn(4, 500, 16).cuda()
    init = x[:, :8].clone()
    expected = kmeans(x.cpu(), 8, init=init.cpu(), num_iters=6, tol=0)
    torch.cuda.set_sync_debug_mode('error')
    try:
        eager = kmeans(x, 8, init=init, num_iters=6, tol=0)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(eager.labels.cpu(), expected.labels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kmeans(x, 8, init=init, num_iters=6, tol=0)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.labels, eager.labels)
    assert torch.equal(captured.centers, eager.centers)
