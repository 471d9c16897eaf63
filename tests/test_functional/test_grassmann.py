# SPDX-License-Identifier: Apache-2.0
"""Logits of subspaces and steps between them: hand values, the SVD form, invariants, blocks, odd input."""

import math

import pytest
import torch

from clusterplug.functional import class_overlap, grassmann_logits, grassmann_step, orthonormalize_bases
from clusterplug.functional.subspace import grassmann
from clusterplug.testing import peak_bytes


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def frames(*shape, seed=0, dtype=torch.float64):
    return torch.linalg.qr(randn(*shape, seed=seed)).Q.to(dtype)


def svd_step(bases, direction, step):
    """The geodesic as the paper writes it, one subspace after the other."""
    found = []
    for s, d in zip(bases, direction, strict=True):
        u, sigma, vh = torch.linalg.svd(d - s @ (s.T @ d), full_matrices=False)
        found.append((s @ vh.T * (step * sigma).cos() + u * (step * sigma).sin()) @ vh)
    return torch.stack(found)


def angles(a, b):
    """Principal angles, by the sines where they are small."""
    sines = torch.linalg.svdvals(b - a @ (a.mT @ b)).clamp(max=1)
    cosines = torch.linalg.svdvals(a.mT @ b).clamp(max=1)
    return torch.where(cosines > 0.7, sines.flip(-1).asin(), cosines.acos())


def test_logits_equal_the_loop():
    x, bases = randn(6, 10), frames(5, 10, 3)
    expected = torch.tensor([[25 * float((s.T @ row / row.norm()).norm()) for s in bases] for row in x])
    torch.testing.assert_close(grassmann_logits(x, bases), expected.double(), rtol=1e-6, atol=0)


def test_logits_do_not_depend_on_the_basis_nor_on_length_and_sign():
    x, bases = randn(2, 7, 12), frames(4, 12, 3)
    turned = bases @ torch.linalg.qr(randn(4, 3, 3, seed=1)).Q
    logits = grassmann_logits(x, bases)
    torch.testing.assert_close(grassmann_logits(x, turned), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(grassmann_logits(-3e4 * x, bases), logits, rtol=0, atol=1e-12)
    assert logits.min() >= 0
    assert logits.max() <= 25
    inside = torch.einsum('kdn,kn->kd', bases, randn(4, 3, seed=2))
    torch.testing.assert_close(grassmann_logits(inside, bases).diagonal(), torch.full((4,), 25.0).double())


def test_one_dimension_is_the_cosine_and_all_dimensions_are_constant():
    x, lines = randn(9, 6), frames(5, 6, 1)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], lines[..., 0][None], dim=-1)
    torch.testing.assert_close(grassmann_logits(x, lines, 7.0), 7 * cosine.abs())
    torch.testing.assert_close(grassmann_logits(x, frames(2, 6, 6)), torch.full((9, 2), 25.0).double())


def test_mean_square_of_the_logits():
    x = randn(40_000, 16, dtype=torch.float32)
    mean = grassmann_logits(x, frames(3, 16, 4, dtype=torch.float32)).square().mean(0)
    torch.testing.assert_close(mean, torch.full((3,), 25**2 * 4 / 16), rtol=0.01, atol=0)


def test_gradients_and_the_blocks_of_dense_features(monkeypatch):
    x, bases = randn(11, 6).requires_grad_(), frames(3, 6, 2).requires_grad_()
    assert torch.autograd.gradcheck(grassmann_logits, (x, bases))
    plain = torch.autograd.grad(grassmann_logits(x, bases).square().sum(), (x, bases))
    monkeypatch.setattr(grassmann, '_MAX_PROJECTIONS', 12)  # two rows a block, and one left
    assert torch.autograd.gradcheck(grassmann_logits, (x, bases))
    blocks = torch.autograd.grad(grassmann_logits(x, bases).square().sum(), (x, bases))
    for one, other in zip(blocks, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(grassmann_logits(x, bases.detach()).sum(), x)[0].isfinite().all()


def test_blocks_need_the_memory_of_the_logits():
    x, bases = randn(40_000, 16, dtype=torch.float32), frames(20, 16, 8, dtype=torch.float32).requires_grad_()

    def ours():
        grassmann_logits(x, bases).sum().backward()

    def plain():
        torch.linalg.vector_norm((x @ bases.mT.flatten(0, 1).T).view(len(x), 20, 8), dim=-1).sum().backward()

    assert peak_bytes(ours) < 0.6 * peak_bytes(plain)


def test_odd_rows():
    bases = frames(3, 6, 2, dtype=torch.float32).requires_grad_()
    x = randn(5, 6, dtype=torch.float32)
    x[0], x[1], x[2] = 0, math.nan, x[2] * 1e30
    x.requires_grad_()
    logits = grassmann_logits(x, bases)
    assert logits[0].eq(0).all()
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[2], grassmann_logits(x[2] / 1e30, bases))
    logits[[0, 2, 3, 4]].sum().backward()
    assert bases.grad.isfinite().all()
    assert x.grad.isfinite().all()
    assert x.grad[:2].eq(0).all()
    assert grassmann_logits(x[:0], bases).shape == (0, 3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    x, bases = randn(50, 32, dtype=torch.float32), frames(4, 32, 3, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(grassmann_logits(x, bases), grassmann_logits(x, bases))
        narrow = grassmann_logits(x.to(dtype), bases)
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), grassmann_logits(x.to(dtype).float(), bases), rtol=1e-2, atol=0)


@pytest.mark.parametrize(('size', 'dim'), [(2, 1), (7, 3), (6, 6), (40, 8)])
@pytest.mark.parametrize('step', [0.0, 0.3, -1.7])
def test_step_equals_the_svd_form(size, dim, step):
    bases, direction = frames(5, size, dim), randn(5, size, dim, seed=1)
    expected = svd_step(bases, direction, step)
    torch.testing.assert_close(grassmann_step(bases, direction, step), expected, rtol=0, atol=2e-14)
    single = grassmann_step(bases.float(), direction.float(), torch.tensor(step))
    torch.testing.assert_close(single, expected.float(), rtol=0, atol=1e-5)


def test_step_turns_a_line_by_its_length():
    line = torch.tensor([[[1.0], [0.0]]])
    turned = grassmann_step(line, torch.tensor([[[0.4], [2.0]]]), 0.25)  # the part along the line has no effect
    torch.testing.assert_close(turned.flatten(), torch.tensor([math.cos(0.5), math.sin(0.5)]))
    assert torch.equal(grassmann_step(line, torch.zeros(1, 2, 1), 0.25), line)


def test_angles_of_a_step_are_the_singular_values():
    bases, direction = frames(4, 20, 3), randn(4, 20, 3, seed=1)
    tangent = direction - bases @ (bases.mT @ direction)
    sigma = torch.linalg.svdvals(tangent)
    step = 0.9 / float(sigma.max())
    new = grassmann_step(bases, direction, step)
    torch.testing.assert_close(angles(bases, new).sort().values, (sigma * step).sort().values, rtol=1e-6, atol=1e-9)
    assert (new.mT @ new - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-14


def test_poster_example_converges_to_the_line():
    x = torch.tensor([0.6, 0.8])
    line = torch.tensor([[1.0], [0.0]])
    for _ in range(100):
        line = grassmann_step(line, x[:, None] * (x @ line), 0.5)
    assert abs(float(x @ line)) > 1 - 1e-6


def test_equal_singular_values_and_tiny_directions():
    bases = torch.eye(6)[:, :2]
    direction = torch.eye(6)[:, 2:4]
    new = grassmann_step(bases, direction, 0.5)
    torch.testing.assert_close(new, math.cos(0.5) * bases + math.sin(0.5) * direction)
    tiny = grassmann_step(bases, direction * 1e-25, 1e25)
    torch.testing.assert_close(tiny.isfinite().all(), torch.tensor(True))
    torch.testing.assert_close(grassmann_step(bases, direction * 1e-12, 0.1), bases)


def test_qr_retraction_is_the_frame_and_first_order_equal():
    bases, direction = frames(4, 15, 3), randn(4, 15, 3, seed=1)
    tangent = direction - bases @ (bases.mT @ direction)
    q, r = torch.linalg.qr(bases + 0.2 * tangent)
    expected = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    torch.testing.assert_close(grassmann_step(bases, direction, 0.2, retraction='qr'), expected, rtol=0, atol=1e-13)
    for step in (1e-2, 1e-3):
        gap = grassmann_step(bases, direction, step, retraction='qr') - grassmann_step(bases, direction, step)
        assert gap.abs().max() < 60 * step**2


def test_drift_is_removed_without_turning_columns():
    bases = frames(3, 12, 4) + 1e-4 * randn(3, 12, 4, seed=1)
    fresh = grassmann_step(bases, torch.zeros_like(bases), 1.0, orthonormalize=True)
    assert (fresh.mT @ fresh - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-14
    torch.testing.assert_close(fresh, bases, rtol=0, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_orthonormalize_equals_qr_with_positive_diagonal(dtype):
    x = randn(4, 30, 5) * torch.logspace(-3, 3, 5, dtype=torch.float64)
    q, r = torch.linalg.qr(x)
    found = orthonormalize_bases(x.to(dtype))
    torch.testing.assert_close(
        found.double(),
        q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None],
        rtol=0,
        atol=1e-6 if dtype == torch.float32 else 1e-12,
    )
    assert orthonormalize_bases(torch.ones(3, 2)).isnan().all()  # dependent columns


def test_overlap_equals_the_loop_in_any_chunk():
    bases = frames(7, 9, 3)
    expected = torch.stack([torch.stack([(a.T @ b).square().sum() / 3 for b in bases]) for a in bases])
    for chunk_size in (1, 3, 64):
        torch.testing.assert_close(class_overlap(bases, chunk_size=chunk_size), expected)
    assert class_overlap(bases).diagonal().sub(1).abs().max() < 1e-14


def test_pymanopt_agrees():
    manifolds = pytest.importorskip('pymanopt.manifolds')
    bases, direction = frames(4, 12, 3), randn(4, 12, 3, seed=1)
    tangent = direction - bases @ (bases.mT @ direction)
    expected = torch.from_numpy(manifolds.Grassmann(12, 3, k=4).exp(bases.numpy(), 0.4 * tangent.numpy()))
    ours = grassmann_step(bases, direction, 0.4)
    torch.testing.assert_close(ours @ ours.mT, expected @ expected.mT, rtol=0, atol=1e-7)  # bases may differ by a turn


BASES = torch.eye(4)[None, :, :2]


@pytest.mark.parametrize(
    ('call', 'error', 'match'),
    [
        (lambda: grassmann_logits(torch.ones(3, 5), BASES), ValueError, '4 channels'),
        (lambda: grassmann_logits(torch.ones(3, 4).long(), BASES), TypeError, 'floating'),
        (lambda: grassmann_logits(torch.ones(3, 4), BASES, scale=0), ValueError, 'scale'),
        (lambda: grassmann_logits(torch.ones(3, 4), BASES.mT), ValueError, 'as many columns'),
        (lambda: grassmann_step(BASES, BASES[0], 0.1), ValueError, 'shape of the bases'),
        (lambda: grassmann_step(BASES, [0.0], 0.1), TypeError, 'direction'),
        (lambda: grassmann_step(BASES, BASES, math.nan), ValueError, 'step'),
        (lambda: grassmann_step(BASES, BASES, torch.ones(2)), ValueError, 'one number'),
        (lambda: grassmann_step(BASES, BASES, 0.1, retraction='polar'), ValueError, 'geodesic'),
        (lambda: class_overlap(BASES[0]), ValueError, r'\(K, D, n\)'),
        (lambda: class_overlap(BASES * math.nan), ValueError, 'finite'),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
