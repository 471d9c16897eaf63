# SPDX-License-Identifier: Apache-2.0
"""MultiLabelClusterHead: the dense loss, samples, blocks, ranks, memory, state, bad input."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional import multilabel_discrimination
from clusterplug.heads import MultiLabelClusterHead
from clusterplug.testing import count_host_syncs, run_gloo

CLASSES, DIMS = 23, 6


def make(seed=0, **options):
    torch.manual_seed(seed)
    given = {'num_classes': CLASSES, 'embed_dims': DIMS, 'scale': 8.0, 'sample_rate': 1.0, **options}
    head = MultiLabelClusterHead(**given)
    torch.nn.init.normal_(head.weight)
    return head


def batch(rows=7, width=3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, DIMS, generator=generator, dtype=dtype)
    labels = torch.stack([torch.randperm(CLASSES, generator=generator)[:width] for _ in range(rows)])
    return x, labels


def dense(weight, x, labels, scale, margin, drawn=None):
    """The loss in loops over rows, with all scores in memory."""
    cosines = F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T
    losses = []
    for row, own in zip(cosines, labels.tolist()):
        own = sorted({each for each in own if each >= 0})
        others = [each for each in (range(len(weight)) if drawn is None else drawn) if each not in own]
        losses.append(multilabel_discrimination(row[None, own], row[None, others], scale=scale, margin=margin)[0])
    return torch.stack(losses)


@pytest.mark.parametrize('block', [1, 40, 1 << 20])
@pytest.mark.parametrize('margin', [0.0, 0.3])
def test_equals_the_dense_loss_and_its_gradients(block, margin):
    head, (x, labels) = make(margin=margin, block_elements=block).double(), batch(dtype=torch.float64)
    head.weight.data = head.weight.data.double()
    labels[2, 1:] = -1
    labels[3, 1] = labels[3, 0]  # named twice, counts once
    x.requires_grad_()
    loss = head(x, labels)
    expected = dense(head.weight, x, labels, 8.0, margin).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss, (x, head.weight))
    theirs = torch.autograd.grad(expected, (x, head.weight))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_gradcheck_and_sparse_gradients():
    head, (x, labels) = make(margin=0.2, scale=3.0), batch(2, 2, dtype=torch.float64)
    head.weight.data = head.weight.data.double()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda y, w: torch.func.functional_call(head, {'weight': w}, (y, labels)),
                                    (x, head.weight.detach().clone().requires_grad_()))  # fmt: skip
    for rate in (1.0, 0.5):
        plain, sparse = make(sample_rate=rate), make(sample_rate=rate, sparse=True)
        (x, labels) = batch(2, 2)
        for each in (plain, sparse):
            each(x, labels).backward()
        assert sparse.weight.grad.is_sparse
        torch.testing.assert_close(sparse.weight.grad.to_dense(), plain.weight.grad)
        torch.optim.SparseAdam([sparse.weight], lr=0.1).step()


def touched(head):
    return head.weight.grad.norm(dim=1).gt(0)


def test_sample_holds_all_positives_and_its_exact_number():
    (x, labels), counts = batch(3, 2), torch.zeros(CLASSES)
    positives = set(labels.flatten().tolist())
    head = make(sample_rate=0.5)
    for _ in range(200):
        head.weight.grad = None
        head(x, labels).backward()
        drawn = touched(head)
        assert int(drawn.sum()) == int(0.5 * CLASSES)
        assert positives <= set(drawn.nonzero().flatten().tolist())
        counts += drawn
    others = torch.tensor([k for k in range(CLASSES) if k not in positives])
    share = (int(0.5 * CLASSES) - len(positives)) / len(others)
    assert (counts[others] / 200 - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / 200)
    # more positives than the sample holds: those alone
    x, labels = batch(7, 3)
    head = make(sample_rate=0.1)
    head(x, labels).backward()
    assert set(touched(head).nonzero().flatten().tolist()) == set(labels.flatten().tolist())


def test_loss_of_a_sample_is_the_dense_loss_over_it():
    head, (x, labels) = make(sample_rate=0.6, block_elements=20, margin=0.3), batch(4, 2)
    loss = head(x, labels)
    loss.backward()
    drawn = touched(head).nonzero().flatten().tolist()
    torch.testing.assert_close(loss, dense(head.weight, x, labels, 8.0, 0.3, drawn).mean())
    # its negative part is r times that of all classes, in the mean
    positive = labels[:1, :1]
    head = make(scale=1.0, margin=0.0, sample_rate=8 / CLASSES)
    everything = make(scale=1.0, margin=0.0)
    own = F.normalize(x[:1], dim=1) @ F.normalize(head.weight[positive[0]], dim=1).T
    pull = (-own).exp().log1p().item()
    sums = torch.tensor([math.expm1(head(x[:1], positive).item() - pull) for _ in range(600)])
    total = math.expm1(everything(x[:1], positive).item() - pull)
    assert abs(sums.mean().item() / total - 7 / 22) < 0.02


def test_odd_rows_are_ignored_and_types():
    head, (x, labels) = make(margin=0.3), batch()
    expected = dense(head.weight, x, labels, 8.0, 0.3)
    odd = x.clone()
    odd[1, 2], odd[4, 0] = torch.nan, torch.inf
    none = labels.clone()
    none[5] = -1
    kept = torch.tensor([0, 2, 3, 6])
    torch.testing.assert_close(head(odd, none), expected[kept].mean())
    head(odd.requires_grad_(), none).backward()
    assert head.weight.grad.isfinite().all()
    assert odd.grad[kept].isfinite().all()
    assert odd.grad[5].eq(0).all()
    torch.testing.assert_close(head(x * 1e30, labels), expected.mean())
    torch.testing.assert_close(head(x[:, None].expand(-1, 2, -1)[:, 1], labels.T.contiguous().T), expected.mean())
    for empty in (head(x[:0], labels[:0]), head(x, torch.full_like(labels, -1)), head(x, labels[:, :0])):
        assert empty == 0
        empty.backward()
    torch.testing.assert_close(head(x, labels[:, 0]), head(x, labels[:, :1]))
    torch.testing.assert_close(head(x, labels.int()), expected.mean())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(head(x, labels), expected.mean())
    half = head.bfloat16()
    assert half.weight.dtype == torch.float32
    assert half(x.bfloat16(), labels).dtype == torch.float32


def test_no_host_synchronization(monkeypatch):
    monkeypatch.setattr('clusterplug.heads.multi_label_cluster_head.host_checks_allowed', lambda x: False)
    head, (x, labels) = make(sample_rate=0.3), batch()
    assert count_host_syncs(lambda: head(x.requires_grad_(), labels).backward()).total() == 0


def test_resumed_runs_draw_the_same_classes():
    head, (x, labels) = make(sample_rate=0.5), batch(3, 2)
    for _ in range(3):
        head(x, labels)
    other = make(seed=5, sample_rate=0.5)
    other.load_state_dict(head.state_dict())
    for _ in range(3):
        assert torch.equal(head(x, labels), other(x, labels))
    evaluated = copy.deepcopy(head).eval()
    evaluated(x, labels)
    assert int(evaluated.step) == int(head.step) == 6


def test_centers_of_a_clustering_start_the_head(tmp_path):
    import numpy as np

    centers = torch.randn(CLASSES, DIMS)
    np.save(tmp_path / 'centers.npy', centers.numpy())
    for start in (centers, centers.numpy(), str(tmp_path / 'centers.npy')):
        head = MultiLabelClusterHead(CLASSES, DIMS, init_centers=start)
        torch.testing.assert_close(head.weight.detach(), centers)
        torch.testing.assert_close(head.gather_centers(), centers)
    with pytest.raises(ValueError, match='init_centers must have shape'):
        MultiLabelClusterHead(CLASSES, DIMS + 1, init_centers=centers)


def one_rank(rank, world_size):
    found = []
    full = torch.randn(CLASSES, DIMS, generator=torch.Generator().manual_seed(9))
    for shard in (False, True):
        head = make(margin=0.3, shard_weights=shard)
        head.load_centers(full)
        x, labels = batch(6)
        half = slice(3 * rank, 3 * rank + 3)
        x = x[half].requires_grad_()
        loss = head(x, labels[half])
        loss.backward()
        assert torch.equal(head.gather_centers(), full)
        found.append((loss.detach(), x.grad, head.weight.grad, (head.first_class, head.last_class)))
    return found


def test_two_ranks_equal_one_process():
    """Positives of a row are on both ranks; the mean of gradients over ranks is what DDP takes."""
    loss, grad_x, grad_weight, bounds = single()
    assert bounds == (0, CLASSES)
    for shard, found in enumerate(zip(*run_gloo(one_rank, 2))):
        assert [each[3] for each in found] == [(0, 12), (12, 23)]
        for each in found:
            torch.testing.assert_close(each[0], loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.cat([each[1] for each in found]) / 2, grad_x, rtol=1e-5, atol=1e-6)
        weights = torch.cat([each[2] for each in found]) if shard else (found[0][2] + found[1][2]) / 2
        torch.testing.assert_close(weights, grad_weight, rtol=1e-5, atol=1e-6)


def single():
    head = make(margin=0.3)
    head.load_centers(torch.randn(CLASSES, DIMS, generator=torch.Generator().manual_seed(9)))
    x, labels = batch(6)
    x.requires_grad_()
    loss = head(x, labels)
    loss.backward()
    return loss.detach(), x.grad, head.weight.grad, (head.first_class, head.last_class)


MEMORY = """
import torch
from clusterplug.heads import MultiLabelClusterHead
from clusterplug.testing import peak_of_process
torch.set_num_threads(1)
head = MultiLabelClusterHead(1_000_000, 128, 32.0, 0.3, 0.1)
x = torch.randn(256, 128, requires_grad=True)
head(x, torch.randint(0, 1_000_000, (256, 8))).backward()
print(peak_of_process() / 2**30, float(head.weight.grad.norm()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').is_file(), reason='the peak is read from /proc')
def test_a_million_classes_in_two_gigabytes():
    done = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    gigabytes, norm = map(float, done.stdout.split())
    assert norm > 0
    assert gigabytes <= 2.0


def test_bad_input():
    head, (x, labels) = make(), batch()
    for args, error, message in [
        ((x[:, :2], labels), ValueError, r'x must have shape \(N, 6\)'),
        ((x.long(), labels), TypeError, 'x must be a floating tensor'),
        ((x, labels[:3]), ValueError, r'labels must have shape \(7, l\)'),
        ((x, labels.float()), TypeError, 'labels must be an int tensor'),
        ((x, [[1]] * 7), TypeError, 'pad rows with -1'),
        ((x, labels + CLASSES), ValueError, 'labels must be -1'),
        ((x, labels - 30), ValueError, 'labels must be -1'),
    ]:
        with pytest.raises(error, match=message):
            head(*args)
    for options, message in [
        ({'sample_rate': 0.0}, 'sample_rate'), ({'sample_rate': 1.5}, 'sample_rate'), ({'scale': 0}, 'scale'),
        ({'margin': 2.0}, 'margin'), ({'num_classes': 0}, 'num_classes'), ({'embed_dims': 0}, 'embed_dims'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make(**options)
