# SPDX-License-Identifier: Apache-2.0
"""The counters count what they say, on operations whose count is known."""

import pytest
import torch

from clusterplug.testing import count_host_syncs, count_launches

X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ('fn', 'expected'),
    [
        (lambda: X.view(-1)[2:].T.expand(2, 4).reshape(2, 4)[0], dict()),
        (lambda: torch.empty(3).detach(), dict()),
        (lambda: X @ X.T, dict(mm=1)),
        (lambda: X.T.contiguous(), dict(clone=1)),
        (lambda: torch.zeros(3).add_(1), dict(zeros=1, add_=1)),
        (lambda: X.clone().view(-1).mul_(2), dict(clone=1, mul_=1)),
        (lambda: X.double(), dict(_to_copy=1)),
    ],
)
def test_launches(fn, expected):
    assert count_launches(fn) == expected


def test_launches_of_the_backward_pass_are_counted():
    x = X.clone().requires_grad_()
    forward = count_launches(lambda: (x * x).sum())
    both = count_launches(lambda: (x * x).sum().backward())
    assert forward == dict(mul=1, sum=1)
    assert both['mul'] == 3  # x dy twice
    assert both.total() > forward.total()


@pytest.mark.parametrize(
    ('fn', 'expected'),
    [
        (lambda: X.sum().item(), dict(_local_scalar_dense=1)),
        (lambda: float(X.sum()), dict(_local_scalar_dense=1)),
        (lambda: bool(X.sum() > 1), dict(_local_scalar_dense=1)),
        (lambda: X.tolist(), dict(tolist=1)),
        (lambda: X.numpy(), dict(numpy=1)),
        (lambda: X.cpu(), dict(cpu=1)),
        (lambda: X.to('cpu'), dict(to=1)),
        (lambda: X.nonzero(), dict(nonzero=1)),
        (lambda: torch.where(X > 1), dict(nonzero=1)),
        (lambda: X[X > 1], dict(index=1)),
        (lambda: X.masked_select(X > 1), dict(masked_select=1)),
        (lambda: X.unique(), dict(_unique2=1)),
        (lambda: X.unique(dim=0), dict(unique_dim=1)),
        (lambda: torch.bincount(torch.tensor([1, 2])), dict(bincount=1)),
        (lambda: torch.repeat_interleave(torch.tensor([1, 2])), dict(repeat_interleave=1)),
    ],
)
def test_waits(fn, expected):
    assert count_host_syncs(fn) == expected


@pytest.mark.parametrize(
    'fn',
    [
        lambda: X[torch.tensor([0, 1])],
        lambda: X.masked_fill(X > 1, 0.0),
        lambda: torch.where(X > 1, X, 0.0),
        lambda: X.clone().__setitem__(X > 1, 0.0),
        lambda: torch.repeat_interleave(torch.tensor([1, 2]), output_size=3),
        lambda: X.sort().values.cumsum(0).topk(1),
        lambda: (X @ X.T).softmax(0).to(X.device),
        lambda: X.shape[0] + X.numel(),
    ],
)
def test_no_wait(fn):
    assert not count_host_syncs(fn)
