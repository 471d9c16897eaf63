# SPDX-License-Identifier: Apache-2.0
"""The eigenvectors with the largest eigenvalues of symmetric matrices with spectrum in [-1, 1]."""

import math
import warnings

import torch
from torch import Tensor

# An answer counts when what keeps its vectors from being exact is below this share of the gap that follows them: the
# sine of the angle between the space found and the true one. The iteration goes on to the smaller share where it can.
_ANGLE = 1e-2
_SHARP_ANGLE = 1e-4
# What the rounding of a decomposition leaves, in eps.
_ROUNDING = 10

# On one CPU thread a sparse product costs as much as a dense one at about a quarter of the entries; the conversion
# costs three dense products.
_SPARSE_POINTS = 512
_SPARSE_SHARE = 0.1


def leading_eigenvectors(matrix: Tensor, count: int, solver: str) -> tuple[Tensor, Tensor]:
    """Return (B, N, count) orthonormal eigenvectors of ``matrix`` (B, N, N), in no fixed order or sign.

    Args:
        matrix: (B, N, N), symmetric, eigenvalues in [-1, 1].
        count: Number of eigenvectors.
        solver: ``'eigh'``: all eigenvectors, exactly. ``'subspace'``: Chebyshev-filtered subspace iteration, almost
            only products. ``'auto'``: the faster one, see :func:`choose_solver`, and in float64 ``'eigh'``
            where the iteration has not found the answer by the time that would have taken.

    Returns:
        The vectors, and (B,) bool, whether each answer is good: its residual is far below the gap between the
        eigenvalues ``count`` and ``count`` + 1. If not, the iteration has not converged, or the gap is too small for
        the type of ``matrix``.
    """
    num_points = matrix.shape[-1]
    block = count + max(8, count // 4)
    chosen = choose_solver(num_points, block, matrix.device) if solver == 'auto' else solver
    if chosen == 'eigh' or 2 * block > num_points:
        return _all_eigenvectors(matrix, count)
    if matrix.device.type == 'cpu' and num_points >= _SPARSE_POINTS:
        found = [_filtered_subspace(_sparse(each), count, block) for each in matrix]
        vectors, good, exact = (torch.stack(parts) for parts in zip(*found))
    else:
        vectors, good, exact = _filtered_subspace(matrix, count, block)
    # in fp32 a missed answer is mostly one of rounding, which all eigenvectors suffer from as well
    if solver == 'auto' and matrix.dtype == torch.float64:
        missed = (~(good | exact)).nonzero().flatten()
        if len(missed):
            vectors[missed], good[missed] = _all_eigenvectors(matrix[missed], count)
    return vectors, good


def choose_solver(num_points: int, block: int, device: torch.device) -> str:
    """Return ``'subspace'`` where its products cost less than all eigenvectors.

    Measured on one CPU thread with 61 vectors: at N = 588 level with ``eigh``, at N = 1,500 2 to 4 times faster. An
    accelerator is far better at products than at decompositions.
    """
    few = 6 * block <= num_points if device.type == 'cpu' else 3 * block <= num_points
    return 'subspace' if few and (device.type != 'cpu' or num_points >= 1000) else 'eigh'


def _all_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    if count == matrix.shape[-1]:
        good = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    else:
        gap = values[..., -count] - values[..., -count - 1]
        rounding = 1e-12 if matrix.dtype == torch.float64 else _ROUNDING * torch.finfo(matrix.dtype).eps
        good = rounding < _ANGLE * gap
    return vectors[..., -count:], good


def _sparse(matrix: Tensor) -> Tensor:
    """Return ``matrix`` (N, N) in compressed rows if few entries are not zero, else as it is."""
    if torch.count_nonzero(matrix) > _SPARSE_SHARE * matrix.numel():
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Sparse CSR')  # "in beta state"; only its product is used
        return matrix.to_sparse_csr()


def _filtered_subspace(matrix: Tensor, count: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, N, count) Ritz vectors, whether each problem's are good, and whether only rounding is left in them.

    ``matrix`` is dense (B, N, N), or (N, N) dense or sparse.

    It goes on until they are, until rounding is all that is left to improve, or until all eigenvectors would have
    cost less.
    """
    generator = torch.Generator(matrix.device).manual_seed(0)
    start = torch.randn(matrix.shape[-1], block, generator=generator, dtype=matrix.dtype, device=matrix.device)
    values, vectors, residual = _ritz(matrix, torch.linalg.qr(matrix @ start).Q)
    rounding = _ROUNDING * torch.finfo(matrix.dtype).eps * math.sqrt(matrix.shape[-1] / 100)
    left, before = _products_allowed(matrix, block), torch.full_like(residual[..., 0], torch.inf)
    while True:
        # the next eigenvalue may lie as far above its estimate as the residual of that is long
        gap = values[..., -count] - values[..., -count - 1] - residual[..., -count - 1]
        worst = residual[..., -count:].amax(-1)
        good = worst < _ANGLE * gap
        at_rest = (worst > 0.5 * before) & (good | (worst < 50 * rounding))
        done = (worst < _SHARP_ANGLE * gap) | (worst < rounding) | at_rest
        if left <= 0 or bool(done.all()):
            return vectors[..., -count:], good, worst < 50 * rounding
        before = worst
        bound = values[..., :1, None].clamp(-0.5, 1 - 1e-6)
        degree = _degree(values, bound)
        vectors = torch.linalg.qr(_damp_below(matrix, vectors, bound, degree)).Q
        values, vectors, residual = _ritz(matrix, vectors)
        left -= degree + 2


def _products_allowed(matrix: Tensor, block: int) -> int:
    """Return after how many products all eigenvectors would have been cheaper.

    They take about 9 N^3 multiplications, at a quarter of the speed of a dense product and five times that of a
    sparse one.
    """
    num_points = matrix.shape[-1]
    sparse = matrix.layout == torch.sparse_csr
    entries = max(1, matrix.values().numel()) if sparse else num_points**2
    return min(5000, max(100, int(9 * num_points**3 / (entries * block) * (0.2 if sparse else 4))))


def _degree(values: Tensor, bound: Tensor) -> int:
    """Return the degree at which the largest eigenvalue outgrows those below the bound by what the type can hold."""
    growth = 1e4 if values.dtype == torch.float32 else 1e8
    largest = ((2 * values[..., -1] + 1 - bound[..., 0, 0]) / (1 + bound[..., 0, 0])).amax().item()
    if not largest > 1:
        return 2
    return min(200, max(2, int(math.acosh(growth) / math.acosh(largest))))


def _ritz(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Ritz values (ascending), their vectors, and the length of what keeps each from being exact."""
    image = matrix @ vectors
    product = vectors.mT @ image
    values, rotation = torch.linalg.eigh((product + product.mT) / 2)
    vectors = vectors @ rotation
    residual = (image @ rotation - vectors * values[..., None, :]).norm(dim=-2)
    return values, vectors, residual


def _damp_below(matrix: Tensor, vectors: Tensor, bound: Tensor, degree: int) -> Tensor:
    """Apply the Chebyshev polynomial that stays within 1 on [-1, bound] and grows fastest above it."""
    half_width, center = (bound + 1) / 2, (bound - 1) / 2

    def scaled(block: Tensor) -> Tensor:
        return (matrix @ block - center * block) / half_width

    before, current = vectors, scaled(vectors)
    for _ in range(degree - 1):
        before, current = current, 2 * scaled(current) - before
    return current
