"""The methods of reduction behind one face: a map goes in, fewer tokens and the way back come out."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.functional import cluster_tokens, combine_tokens, merge_tokens_to, token_neighbors, token_spread
from clusterplug.functional._token_checks import check_settings
from clusterplug.patch._geometry import cell_places


class Reduced(NamedTuple):
    """Reduced tokens of one forward pass.

    Attributes:
        tokens: (B, M, C).
        restore: (B, M, C) refined tokens -> (B, H, W, C).
        places: (M, 2) or (B, M, 2) rows and columns.
        sizes: (B, M) how many tokens attention is to count each as, or None for one.
    """

    tokens: Tensor
    restore: Callable[[Tensor], Tensor]
    places: Tensor
    sizes: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Expedit:
    """Local soft k-means, and reconstruction from the nearest clusters.

    Args:
        num_iters: Iterations of the clustering.
        temperature: Of squared distances, or None for ``sharpness`` times the spread of the tokens.
        sharpness: Share of the spread (:func:`clusterplug.functional.token_spread`) that serves as temperature.
        window: Odd number of cells around a token's own that it may join.
        num_neighbors: Clusters that a token is rebuilt from, at most.
        norm: ``'l1'`` or ``'l2'`` (only without ``residual``).
        search: Odd number of cells around a token's own in which it looks for them; None means everywhere.
        residual: Carry the change of the clusters back to the tokens, instead of the clusters themselves.
        size_bias: Attention counts a cluster as often as the tokens in it.
    """

    num_iters: int = 5
    temperature: float | None = None
    sharpness: float = 0.2
    window: int = 5
    num_neighbors: int = 20
    norm: str = 'l1'
    search: int | None = 5
    residual: bool = True
    size_bias: bool = False
    keeps_grid = True

    def __post_init__(self):
        check_settings(
            num_iters=self.num_iters,
            temperature=self.sharpness if self.temperature is None else self.temperature,
            window=self.window,
            num_neighbors=self.num_neighbors,
            norm=self.norm,
        )
        check_settings(window=self.search)
        if self.norm == 'l2' and self.residual:
            raise ValueError("norm='l2' needs residual=False: weights that do not add up to one inflate the change")

    def __call__(self, tokens: Tensor, grid: tuple[int, int], compared: Callable[[], Tensor]) -> Reduced:
        """Reduce (B, H, W, C) to ``grid``; ``compared`` is not needed."""
        temperature = self.temperature
        if temperature is None:
            temperature = self.sharpness * token_spread(tokens, grid)
        state = cluster_tokens(tokens, grid, num_iters=self.num_iters, temperature=temperature, window=self.window)
        neighbors = token_neighbors(state, num_neighbors=self.num_neighbors, norm=self.norm, window=self.search)

        def restore(refined: Tensor) -> Tensor:
            refined = refined.unflatten(1, grid)
            if self.residual:
                return tokens + combine_tokens(refined - state.centers, neighbors)
            return combine_tokens(refined, neighbors)

        places = cell_places(tokens.shape[1:3], grid, tokens.device)
        sizes = state.mass.flatten(1) if self.size_bias else None
        return Reduced(state.centers.flatten(1, 2), restore, places, sizes)


@dataclasses.dataclass(frozen=True)
class Average:
    """Averages over the cells of a grid, and bilinear interpolation back.

    Args:
        residual: Carry the change of the averages back to the tokens, instead of the averages themselves.
    """

    residual: bool = True
    keeps_grid = True

    def __call__(self, tokens: Tensor, grid: tuple[int, int], compared: Callable[[], Tensor]) -> Reduced:
        """Reduce (B, H, W, C) to ``grid``; ``compared`` is not needed."""
        centers = cluster_tokens(tokens, grid, num_iters=0).centers
        size = tuple(tokens.shape[1:3])

        def restore(refined: Tensor) -> Tensor:
            refined = refined.unflatten(1, grid)
            change = (refined - centers if self.residual else refined).permute(0, 3, 1, 2)
            if len(change):
                change = F.interpolate(change, size=size, mode='bilinear', align_corners=False)
            change = change.permute(0, 2, 3, 1).reshape(tokens.shape)
            return tokens + change if self.residual else change

        return Reduced(centers.flatten(1, 2), restore, cell_places(size, grid, tokens.device))


@dataclasses.dataclass(frozen=True)
class Tome:
    """Bipartite soft matching of similar tokens, and a copy of the merged token back to each.

    Args:
        compare: What is compared: ``'normalized'``, the tokens as the first reduced block normalises them, or
            ``'tokens'`` as they are.
        residual: Carry the change of the merged tokens back to the tokens, instead of the merged tokens themselves.
        size_bias: Attention counts a merged token as often as the tokens in it.
    """

    compare: str = 'normalized'
    residual: bool = True
    size_bias: bool = True
    keeps_grid = False

    def __post_init__(self):
        if self.compare not in ('normalized', 'tokens'):
            raise ValueError(f"compare must be 'normalized' or 'tokens', got {self.compare!r}")

    def __call__(self, tokens: Tensor, grid: tuple[int, int], compared: Callable[[], Tensor]) -> Reduced:
        """Reduce (B, H, W, C) to as many tokens as ``grid`` has cells."""
        batch, height, width, channels = tokens.shape
        flat = tokens.flatten(1, 2)
        metric = flat if self.compare == 'tokens' else compared().flatten(1, 2)
        places = cell_places((height, width), (height, width), tokens.device)
        places = places.expand(batch, -1, -1)
        if batch == 0:
            short, places = flat[:, : grid[0] * grid[1]], places[:, : grid[0] * grid[1]]
            return Reduced(short, lambda refined: tokens, places)
        with_places = torch.cat([flat.to(torch.promote_types(flat.dtype, torch.float32)), places], -1)
        merged = merge_tokens_to(with_places, grid[0] * grid[1], metric=metric.detach())
        short = merged.tokens[..., :channels].to(tokens.dtype)

        def restore(refined: Tensor) -> Tensor:
            back = merged.unmerge(refined - short if self.residual else refined).view(batch, height, width, -1)
            return tokens + back if self.residual else back

        sizes = merged.sizes[..., 0] if self.size_bias else None
        return Reduced(short, restore, merged.tokens[..., channels:], sizes)


METHODS = {'expedit': Expedit, 'tome': Tome, 'average': Average}


def make_method(name: str, options: dict) -> Expedit | Average | Tome:
    """Return the method ``name`` with its options.

    Raises:
        ValueError: The name or an option is unknown, or an option out of range.
    """
    if name not in METHODS:
        raise ValueError(f'method must be one of {", ".join(METHODS)} or centerclip, got {name!r}')
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"method '{name}' has the options {', '.join(known)}; got {', '.join(unknown)}")
    return METHODS[name](**options)
