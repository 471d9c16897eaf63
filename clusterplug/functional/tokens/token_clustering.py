# SPDX-License-Identifier: Apache-2.0
"""Token clustering: a map of tokens becomes a smaller map of cluster tokens, by local soft k-means."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_finite, check_mask
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.core.origin import typical_origin, typical_rows
from clusterplug.functional.tokens._token_checks import check_grid, check_map, check_settings
from clusterplug.functional.tokens._token_tiles import Tiles, tiles

# Keeps a division by no weight at all finite; too small to change any other.
LEAST_MASS = 1e-30


class TokenClusters(NamedTuple):
    """What clustering leaves for later: the cluster tokens, and what reconstruction needs.

    Attributes:
        centers: (B, h, w, C) cluster tokens in the type of the input.
        mass: (B, h, w) how many tokens each cluster stands for, fp32 or fp64; they add up to the valid tokens.
        tokens: (B, H, W, C) the tokens that were clustered.
        mask: (B, H, W) bool, True = valid, or None.
        cell_mask: (B, h, w) bool, True for clusters over at least one valid token, or None. Keep the others out of
            attention.
        temperature: That of the assignment.
        window: Cells along each side of the square in which a token looked for its clusters.
    """

    centers: Tensor
    mass: Tensor
    tokens: Tensor
    mask: Tensor | None
    cell_mask: Tensor | None
    temperature: float | Tensor
    window: int


def cluster_tokens(
    x: Tensor,
    grid: tuple[int, int],
    *,
    num_iters: int = 5,
    temperature: float | Tensor = 50.0,
    window: int = 5,
    mask: Tensor | None = None,
) -> TokenClusters:
    r"""Cluster a map of tokens into a smaller map of the same layout.

    Centers start as the average over the cells of the grid. Then ``num_iters`` times, with :math:`\mathcal{N}(n)` the
    clusters at most ``window // 2`` cells away from the cell that token :math:`n` lies in,

    .. math::
        A_{nm} = \mathrm{softmax}_{m \in \mathcal{N}(n)} \left(-\|z_n - s_m\|^2 / \tau\right), \quad
        s_m = \sum_n A_{nm} z_n / \sum_n A_{nm}

    Only neighboring pairs are multiplied: tiles of 4 x 4 cells against the cells within reach, all tiles of all
    images in one batched product, which gives the same numbers as all H W x h w distances. Gradients reach ``x``
    through the weighted means of the last iteration; the weights are constants.

    Args:
        x: (B, H, W, C) tokens, floating; distances are taken in fp32 at least, whatever autocast says. B may be 0.
        grid: (h, w) with 1 <= h <= H and 1 <= w <= W; clusters keep their shape best where h / w is H / W.
        num_iters: Iterations; 0 leaves the averages.
        temperature: Divides the squared distances, above 0; one number or (B,) one for each image. High: neighbors
            mix; low: hard local k-means. The scale of tokens differs a thousandfold between models and layers, and a
            temperature far above it turns clusters into blurs: 0.2 * :func:`token_spread` fits all of them.
        window: Odd number of cells, at least 1.
        mask: (B, H, W) bool, True = valid. Other tokens (padding; they may hold anything) are ignored.

    Returns:
        TokenClusters. A cluster over no valid token is zero, has no mass and is False in ``cell_mask``; one whose
        weights all round to 0 keeps its last center.

    Raises:
        TypeError: ``x`` is not a floating tensor, a number has the wrong type, ``mask`` is not bool.
        ValueError: A shape, the grid, the window, the temperature or the number of iterations is out of range; a
            valid token is NaN or infinite (looked for on the CPU only, where it costs no synchronization).

    Source:
        Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", NeurIPS
        2022, section 3; official code Expedit-Segmenter (Apache-2.0), read for behavior.

        **Differs from the authors' code**: ``temperature`` is a temperature, theirs multiplies (0.02 = 1 / 50);
        distances beyond the window are never computed; rectangular grids; masks; empty clusters keep their center
        instead of turning to zero; distances in fp32.

    Example:
        >>> import torch
        >>> clusters = cluster_tokens(torch.randn(2, 40, 40, 64), (28, 28))
        >>> clusters.centers.shape, round(float(clusters.mass.sum()))
        (torch.Size([2, 28, 28, 64]), 3200)
    """
    check_map(x)
    grid = check_grid(grid, x.shape[1:3])
    check_settings(num_iters=num_iters, temperature=temperature, window=window)
    check_mask(mask, x.shape[:3], x.device)
    if host_checks_allowed(x):
        check_finite(x.detach().flatten(1, 2), 'x', None if mask is None else mask.flatten(1))
    with exact_products(x):
        # Picking tokens out of a map whose channels lie far apart takes longer than all the rest.
        values = x.to(working_dtype(x.dtype)).contiguous()
        if mask is not None:
            values = torch.where(mask[..., None], values, 0)
        centers, mass, cell_mask = _average(values, grid, mask)
        if num_iters > 0 and x.shape[0] > 0:
            centers, mass = _iterate(values, centers, cell_mask, mask, num_iters, temperature, window)
    return TokenClusters(centers.to(x.dtype), mass, x, mask, cell_mask, temperature, window)


def cluster_labels(clusters: TokenClusters) -> Tensor:
    """Nearest cluster of each token among all clusters, wherever they lie.

    Args:
        clusters: As :func:`cluster_tokens` returned.

    Returns:
        (B, H, W) int64 flat number of the cell, row by row; -1 for tokens that the mask leaves out.

    Example:
        >>> import torch
        >>> cluster_labels(cluster_tokens(torch.eye(4).view(1, 2, 2, 4), (2, 2), window=1)).tolist()
        [[[0, 1], [2, 3]]]
    """
    with torch.no_grad(), exact_products(clusters.tokens):
        scores = center_scores(clusters)
        labels = scores.argmax(-1).view(clusters.tokens.shape[:3])
        return labels if clusters.mask is None else labels.masked_fill(~clusters.mask, -1)


def center_scores(clusters: TokenClusters, rows: slice = slice(None)) -> Tensor:
    """Return (B, N, M): each token's negative squared distances from all centers over the temperature, plus a constant.

    The constant differs from token to token; ``rows`` picks some of the N = H W tokens.
    """
    dtype = working_dtype(clusters.tokens.dtype)
    tokens = clusters.tokens.detach().flatten(1, 2)[:, rows].to(dtype)
    if clusters.mask is not None:
        tokens = torch.where(clusters.mask.flatten(1)[:, rows, None], tokens, 0)
    centers = clusters.centers.detach().flatten(1, 2).to(dtype)
    middle = _middle(centers, clusters.cell_mask)
    shifted = centers - middle
    sharpness = _sharpness(clusters.temperature, dtype)
    bias = _penalty(shifted, sharpness)[..., 0]
    if clusters.cell_mask is not None:
        bias = bias.masked_fill(~clusters.cell_mask.flatten(1), -torch.inf)
    bias = bias[:, None].expand(-1, tokens.shape[1], -1)
    return torch.baddbmm(bias, tokens - middle, (shifted * sharpness).mT, alpha=2)


def nearby_scores(clusters: TokenClusters, window: int) -> tuple[Tensor, Tensor]:
    """Return scores (B, N, L) as :func:`center_scores`, -inf outside the window, and cells (1, N, L) they belong to."""
    dtype = working_dtype(clusters.tokens.dtype)
    batch, height, width, channels = clusters.tokens.shape
    grid = clusters.centers.shape[1], clusters.centers.shape[2]
    plan = tiles((height, width), grid, window, clusters.tokens.device)
    num_tiles, num_candidates, num_slots = plan.shape
    tokens = clusters.tokens.detach().to(dtype).contiguous().flatten(1, 2)
    if clusters.mask is not None:
        tokens = torch.where(clusters.mask.flatten(1)[..., None], tokens, 0)
    centers = clusters.centers.detach().flatten(1, 2).to(dtype)
    middle = _middle(centers, clusters.cell_mask)
    shifted = centers - middle
    slots = (tokens.index_select(1, plan.pixels) - middle).view(batch * num_tiles, num_slots, channels)
    candidates = (shifted * _sharpness(clusters.temperature, dtype)).index_select(1, plan.cells)
    bias = _penalty(shifted, _sharpness(clusters.temperature, dtype)).index_select(1, plan.cells)
    bias = bias.view(batch, num_tiles, num_candidates, 1) + _far(plan, clusters.cell_mask).to(dtype)
    bias = bias.view(batch * num_tiles, num_candidates, num_slots).mT
    candidates = candidates.view(batch * num_tiles, num_candidates, channels)
    scores = torch.baddbmm(bias, slots, candidates.mT, alpha=2)
    cells = plan.cells.view(num_tiles, 1, num_candidates).expand(-1, num_slots, -1).reshape(1, -1, num_candidates)
    scores = scores.view(batch, -1, num_candidates).index_select(1, plan.slot)
    return scores, cells.index_select(1, plan.slot)


def _middle(centers: Tensor, cell_mask: Tensor | None) -> Tensor:
    """Return a point (B, 1, C) amid most centers (B, M, C); their mean would follow one far center."""
    if centers.shape[0] == 0:
        return centers.new_zeros(0, 1, centers.shape[-1])
    return typical_origin(typical_rows(centers, mask=None if cell_mask is None else cell_mask.flatten(1)))


def _sharpness(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Return 1 / temperature, a number or (B, 1, 1)."""
    if not isinstance(temperature, Tensor):
        return 1 / temperature
    return temperature.detach().to(dtype).reciprocal()[:, None, None]


def _penalty(shifted: Tensor, sharpness: float | Tensor) -> Tensor:
    """Return -|s|^2 / temperature of centers (B, M, C), as (B, M, 1)."""
    return torch.linalg.vector_norm(shifted, dim=-1, keepdim=True).square() * -sharpness


def token_spread(x: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """Mean squared distance of tokens from the average of the cell that they lie in: the scale for a temperature.

    Args:
        x: (B, H, W, C) tokens.
        grid: (h, w) cells.
        mask: (B, H, W) bool, True = valid.

    Returns:
        (B,) fp32 or fp64, above 0; no gradient.

    Raises:
        TypeError, ValueError: As :func:`cluster_tokens`.

    Example:
        >>> import torch
        >>> token_spread(torch.tensor([1.0, 3.0, 5.0, 5.0]).view(1, 1, 4, 1), (1, 2)).tolist()
        [0.5]
    """
    check_map(x)
    grid = check_grid(grid, x.shape[1:3])
    check_mask(mask, x.shape[:3], x.device)
    if host_checks_allowed(x):
        check_finite(x.detach().flatten(1, 2), 'x', None if mask is None else mask.flatten(1))
    _, height, width, _ = x.shape
    with torch.no_grad(), exact_products(x):
        values = x.to(working_dtype(x.dtype))
        if mask is not None:
            values = torch.where(mask[..., None], values, 0)
        centers, _, _ = _average(values, grid, mask)
        row = torch.arange(height, device=x.device) * grid[0] // height
        column = torch.arange(width, device=x.device) * grid[1] // width
        homes = (row[:, None] * grid[1] + column).flatten()
        distances = (values.flatten(1, 2) - centers.flatten(1, 2).index_select(1, homes)).square().sum(-1)
        if mask is None:
            spread = distances.mean(-1)
        else:
            valid = mask.flatten(1)
            spread = (distances * valid).sum(-1) / valid.sum(-1).clamp_min(1)
        # A map without differences has no scale; any will do.
        return torch.where(spread <= torch.finfo(spread.dtype).tiny * 1e6, 1.0, spread)


def _average(values: Tensor, grid: tuple[int, int], mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return averages over the cells (B, h, w, C), number of tokens in each (B, h, w), and which hold any."""
    images = values.permute(0, 3, 1, 2)
    if values.shape[0] == 0:
        centers = values.new_zeros((0, *grid, values.shape[-1]))
        return centers, values.new_zeros((0, *grid)), None if mask is None else centers[..., 0] > 0
    centers = F.adaptive_avg_pool2d(images, grid).permute(0, 2, 3, 1)
    per_cell = values.shape[1] * values.shape[2] / (grid[0] * grid[1])
    if mask is None:
        return centers, values.new_full(centers.shape[:3], per_cell), None
    share = F.adaptive_avg_pool2d(mask[:, None].to(values.dtype), grid)[:, 0]
    cell_mask = share > 0
    centers = centers / torch.where(cell_mask, share, 1)[..., None]
    # Cells may overlap: make the mass add up to the number of valid tokens.
    total = mask.flatten(1).sum(1).to(values.dtype) / share.flatten(1).sum(1).clamp_min(LEAST_MASS)
    return centers, share * total[:, None, None], cell_mask


def _iterate(values, centers, cell_mask, mask, num_iters, temperature, window):
    """Return centers (B, h, w, C) and mass (B, h, w) after the iterations."""
    batch, height, width, channels = values.shape
    grid = tuple(centers.shape[1:3])
    plan = tiles((height, width), grid, window, values.device)
    centers = centers.flatten(1, 2)
    num_tiles, _, num_slots = plan.shape
    slots = values.flatten(1, 2).index_select(1, plan.pixels).view(batch * num_tiles, num_slots, channels)
    far = _far(plan, cell_mask)
    keep = _kept_slots(plan, mask, batch)
    offset = torch.arange(batch, device=values.device)[:, None] * centers.shape[1]
    place = (plan.cells + offset).flatten()
    with torch.no_grad():
        # Distances from a common point are small numbers where norms are large ones that cancel. Channels come
        # first, as products of small matrices are twice as fast when neither is transposed.
        middle = _middle(centers, cell_mask)
        sharpness = _sharpness(temperature, values.dtype)
        columns = (slots.view(batch, -1, channels) - middle).mul_(sharpness).view(slots.shape).mT.contiguous()
        for _ in range(num_iters - 1):
            share, mass = _shares(columns, centers - middle, sharpness, far, keep, place, plan)
            centers = _means(share, mass, slots, centers, place)
        share, mass = _shares(columns, centers - middle, sharpness, far, keep, place, plan)
    # The shares are constants, so that only the last means need a graph.
    centers = _means(share, mass, slots, centers, place)
    return centers.view(batch, *grid, channels), mass.view(batch, *grid)


def _far(plan: Tiles, cell_mask: Tensor | None) -> Tensor:
    """Return what to add to the scores, 0 or -inf: (T, L, P), or (B, T, L, P) with a mask."""
    near = plan.near
    if cell_mask is not None:
        num_tiles, num_candidates, _ = plan.shape
        valid = cell_mask.flatten(1).index_select(1, plan.cells).view(-1, num_tiles, num_candidates, 1)
        near = near & valid
        # A masked pixel may have no valid cell near it; it is weighted by 0 later, so any finite score will do.
        near = near | ~near.any(2, keepdim=True)
    return torch.zeros(near.shape, device=near.device).masked_fill(~near, -torch.inf)


def _kept_slots(plan: Tiles, mask: Tensor | None, batch: int) -> Tensor | None:
    """Return (B * T, 1, P) with 0 for repeated and masked pixels and 1 for others, or None if there are only others."""
    num_tiles, _, num_slots = plan.shape
    keep = plan.real
    if mask is not None:
        valid = mask.flatten(1).index_select(1, plan.pixels).view(batch, num_tiles, num_slots)
        keep = valid if keep is None else valid & keep
    if keep is None:
        return None
    return keep.expand(batch, -1, -1).reshape(batch * num_tiles, 1, num_slots)


def _shares(columns, shifted, sharpness, far, keep, place, plan):
    """Return the share (B * T, L, P) that each pixel has in the mean of each candidate, and the mass (B * M,)."""
    num_tiles, num_candidates, _ = plan.shape
    candidates = shifted.flatten(0, 1).index_select(0, place).view(-1, num_candidates, shifted.shape[-1])
    bias = _penalty(shifted, sharpness).flatten().index_select(0, place)
    bias = (bias.view(-1, num_tiles, num_candidates, 1) + far.to(bias.dtype)).flatten(0, 1)
    weights = torch.baddbmm(bias, candidates, columns, alpha=2).softmax(1)
    weights = weights if keep is None else weights * keep
    mass = weights.new_zeros(shifted.shape[0] * shifted.shape[1]).index_add_(0, place, weights.sum(-1).flatten())
    inverse = 1 / (mass + LEAST_MASS)
    return weights * inverse.index_select(0, place).view(-1, num_candidates, 1), mass


def _means(share, mass, slots, centers, place):
    """Return the weighted means (B, M, C); a center without weight, whose shares are all 0, stays where it is."""
    flat = centers.detach().flatten(0, 1)
    sums = torch.bmm(share, slots).flatten(0, 1)
    return (flat * (mass == 0)[:, None]).index_add_(0, place, sums).view(centers.shape)
