"""The eigenvectors with the largest eigenvalues of symmetric matrices with spectrum in [-1, 1]."""

import warnings

import torch
from torch import Tensor

# At most 6 rounds of 8 products: enough for a residual of 1e-4 at a gap of 0.02.
_ROUNDS = 6
_DEGREE = 8
_RESIDUAL = 1e-4

# On one CPU thread a sparse product costs as much as a dense one at about a quarter of the entries; the conversion
# costs three dense products.
_SPARSE_POINTS = 512
_SPARSE_SHARE = 0.1


def leading_eigenvectors(matrix: Tensor, count: int, solver: str) -> Tensor:
    """Return (B, N, count) orthonormal eigenvectors of ``matrix`` (B, N, N), in no fixed order or sign.

    Args:
        matrix: (B, N, N), symmetric, eigenvalues in [-1, 1].
        count: Number of eigenvectors.
        solver: ``'eigh'``: all eigenvectors, exactly. ``'subspace'``: Chebyshev-filtered subspace iteration, almost
            only products; exact where a gap follows eigenvalue ``count``. ``'auto'``: the faster one, see
            :func:`choose_solver`.
    """
    num_points = matrix.shape[-1]
    block = count + max(8, count // 4)
    if solver == 'auto':
        solver = choose_solver(num_points, block, matrix.device)
    if solver == 'eigh' or 2 * block > num_points:
        return torch.linalg.eigh(matrix).eigenvectors[..., -count:]
    if matrix.device.type == 'cpu' and num_points >= _SPARSE_POINTS:
        return torch.stack([_filtered_subspace(_sparse(each), count, block) for each in matrix])
    return _filtered_subspace(matrix, count, block)


def _sparse(matrix: Tensor) -> Tensor:
    """Return ``matrix`` (N, N) in compressed rows if few entries are not zero, else as it is."""
    if torch.count_nonzero(matrix) > _SPARSE_SHARE * matrix.numel():
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Sparse CSR')  # "in beta state"; only its product is used
        return matrix.to_sparse_csr()


def choose_solver(num_points: int, block: int, device: torch.device) -> str:
    """Return ``'subspace'`` where its products cost less than all eigenvectors.

    Measured on one CPU thread with 61 vectors: at N = 588 level with ``eigh``, at N = 1,500 2 to 4 times faster. An
    accelerator is far better at products than at decompositions.
    """
    few = 6 * block <= num_points if device.type == 'cpu' else 3 * block <= num_points
    return 'subspace' if few and (device.type != 'cpu' or num_points >= 1000) else 'eigh'


def _filtered_subspace(matrix: Tensor, count: int, block: int) -> Tensor:
    """Return (B, N, count) Ritz vectors in ascending order of their values."""
    generator = torch.Generator(matrix.device).manual_seed(0)
    start = torch.randn(matrix.shape[-1], block, generator=generator, dtype=matrix.dtype, device=matrix.device)
    values, vectors, _ = _ritz(matrix, torch.linalg.qr(matrix @ start).Q)
    for _ in range(_ROUNDS):
        vectors = torch.linalg.qr(_damp_below(matrix, vectors, values[..., :1, None])).Q
        values, vectors, residual = _ritz(matrix, vectors)
        if residual[..., -count:].amax() < _RESIDUAL:
            break
    return vectors[..., -count:]


def _ritz(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Ritz values (ascending), their vectors, and the length of what keeps each from being exact."""
    image = matrix @ vectors
    values, rotation = torch.linalg.eigh(vectors.mT @ image)
    vectors = vectors @ rotation
    residual = (image @ rotation - vectors * values[..., None, :]).norm(dim=-2)
    return values, vectors, residual


def _damp_below(matrix: Tensor, vectors: Tensor, bound: Tensor) -> Tensor:
    """Apply the Chebyshev polynomial that stays within 1 on [-1, bound] and grows fastest above it."""
    bound = bound.clamp(-0.5, 1 - 1e-4)
    half_width, center = (bound + 1) / 2, (bound - 1) / 2

    def scaled(block: Tensor) -> Tensor:
        return (matrix @ block - center * block) / half_width

    before, current = vectors, scaled(vectors)
    for _ in range(_DEGREE - 1):
        before, current = current, 2 * scaled(current) - before
    return current
