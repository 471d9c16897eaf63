# SPDX-License-Identifier: Apache-2.0
"""The methods of reduction behind one face: a map goes in, fewer tokens and the way back come out."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_count, nearest_name
from clusterplug.core.numerics import static_size
from clusterplug.functional import cluster_tokens, combine_tokens, merge_tokens_to, token_neighbors, token_spread
from clusterplug.functional.tokens import check_settings
from clusterplug.patch._geometry import cell_places


class Reduced(NamedTuple):
    """Reduced tokens of one forward pass.

    Attributes:
        tokens: (B, M, C).
        restore: (B, M, C) refined tokens -> (B, H, W, C).
        places: (M, 2) or (B, M, 2) rows and columns.
        sizes: (B, M) how many tokens attention is to count each as, or None for one.
        merged: What merging in further blocks goes on from.
    """

    tokens: Tensor
    restore: Callable[[Tensor], Tensor]
    places: Tensor
    sizes: Tensor | None = None
    merged: 'Merged | None' = None


class Method(Protocol):
    """What reduces a map of tokens; see :func:`register_method`."""

    keeps_grid: bool

    def __call__(self, tokens: Tensor, grid: tuple[int, int], compared: Callable[[], Tensor]) -> Reduced:
        """Reduce (B, H, W, C) to ``grid``."""
        ...


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
            if change.shape[0]:
                change = F.interpolate(change, size=size, mode='bilinear', align_corners=False)
            change = change.permute(0, 2, 3, 1).reshape(tokens.shape)
            return tokens + change if self.residual else change

        return Reduced(centers.flatten(1, 2), restore, cell_places(size, grid, tokens.device))


class Merged(NamedTuple):
    """Where merging stands between two blocks.

    Attributes:
        places: (B, M, 2) mean row and column of the tokens in each.
        sizes: (B, M, 1) tokens in each.
        restore: (B, M, C) refined tokens -> (B, H, W, C).
    """

    places: Tensor
    sizes: Tensor | None
    restore: Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Tome:
    """Bipartite soft matching of similar tokens, and a copy of the merged token back to each.

    Args:
        compare: What is compared: ``'normalized'``, the tokens as the first reduced block normalizes them, or
            ``'tokens'`` as they are.
        residual: Carry the change of the merged tokens back to the tokens, instead of the merged tokens themselves.
        size_bias: Attention counts a merged token as often as the tokens in it.
        every_block: Merge some tokens in front of every block, as the authors do in all of theirs, instead of all at
            once in front of block ``start``.
        tokens_per_block: How many each block merges, with ``every_block``; None spreads what ``grid`` or
            ``keep_ratio`` leaves out evenly over the blocks.
    """

    compare: str = 'normalized'
    residual: bool = True
    size_bias: bool = True
    every_block: bool = False
    tokens_per_block: int | None = None
    keeps_grid = False

    def __post_init__(self):
        if self.compare not in ('normalized', 'tokens'):
            raise ValueError(f"compare must be 'normalized' or 'tokens', got {self.compare!r}")
        if self.tokens_per_block is not None:
            object.__setattr__(self, 'tokens_per_block', check_count(self.tokens_per_block, 'tokens_per_block', 0))
            if not self.every_block:
                raise ValueError('tokens_per_block needs every_block=True; without it, pass grid or keep_ratio')

    def __call__(
        self, tokens: Tensor, grid: tuple[int, int], compared: Callable[[], Tensor], num_prefix: int = 0
    ) -> Reduced:
        """Reduce (B, H, W, C) to as many tokens as ``grid`` has cells."""
        number = static_size(tokens, 1) * static_size(tokens, 2) - grid[0] * grid[1]
        return self.merge(tokens.flatten(1, 2), number, lambda _: compared().flatten(1, 2), num_prefix, tokens)

    def schedule(self, num_tokens: int, num_left: int, num_blocks: int) -> list[int]:
        """Return how many tokens each block merges.

        Raises:
            ValueError: ``tokens_per_block`` leaves no token of the map.
        """
        if self.tokens_per_block is None:
            total = num_tokens - num_left
            return [total * (index + 1) // num_blocks - total * index // num_blocks for index in range(num_blocks)]
        if self.tokens_per_block * num_blocks >= num_tokens:
            raise ValueError(
                f'tokens_per_block must be at most {(num_tokens - 1) // num_blocks} for {num_tokens} tokens and '
                f'{num_blocks} blocks, got {self.tokens_per_block}'
            )
        return [self.tokens_per_block] * num_blocks

    def merge(
        self,
        tokens: Tensor,
        number: int,
        compared: Callable[[Tensor], Tensor],
        num_prefix: int,
        before: Tensor | Merged,
    ) -> Reduced:
        """Merge ``number`` of the tokens (B, N, C); ``before`` is the map (B, H, W, C), or what was merged so far."""
        if isinstance(before, Tensor):
            before = self._unmerged(before)
        channels, left = tokens.shape[-1], static_size(tokens, 1) - number
        if tokens.shape[0] == 0:
            places, sizes = before.places[:, :left], None if before.sizes is None else before.sizes[:, :left]
            return Reduced(tokens[:, :left], lambda _: before.restore(tokens), places, None, before)
        # Roles alternate over the whole sequence: an odd number of tokens in front swaps them.
        front = num_prefix % 2
        metric = tokens if self.compare == 'tokens' else compared(tokens)
        with_places = torch.cat([tokens.to(torch.promote_types(tokens.dtype, torch.float32)), before.places], -1)
        sizes = before.sizes if before.sizes is None else F.pad(before.sizes, (0, 0, front, 0), value=1.0)
        merged = merge_tokens_to(
            _behind(front, with_places),
            left + front,
            metric=_behind(front, metric.detach()),
            sizes=sizes,
            num_protected=front,
        )
        short = merged.tokens[:, front:, :channels].to(tokens.dtype)

        def restore(refined: Tensor) -> Tensor:
            change = refined - short if self.residual else refined
            back = merged.unmerge(_behind(front, change))[:, front:]
            return before.restore(tokens + back if self.residual else back)

        sizes, places = merged.sizes[:, front:], merged.tokens[:, front:, channels:]
        state = Merged(places, sizes, restore)
        return Reduced(short, restore, places, sizes[..., 0] if self.size_bias else None, state)

    @staticmethod
    def _unmerged(tokens: Tensor) -> Merged:
        height, width = static_size(tokens, 1), static_size(tokens, 2)
        places = cell_places((height, width), (height, width), tokens.device).expand(tokens.shape[0], -1, -1)
        return Merged(places, None, lambda refined: refined.unflatten(1, (height, width)))


def _behind(number: int, values: Tensor) -> Tensor:
    """Return (B, number + N, C), zeros in front of the values."""
    return F.pad(values, (0, 0, number, 0)) if number else values


def unknown_options(name: str, known: Sequence[str], others: Sequence[str], unknown: Sequence[str]) -> str:
    """Return the message that lists all options and the nearest of each that is unknown."""
    got = ', '.join(f'{each}{nearest_name(each, [*known, *others])}' for each in unknown)
    return f"method '{name}' has the options {', '.join(known)}, and apply itself {', '.join(others)}; got {got}"


# Video methods never bring tokens back, so they run in a session of their own.
VIDEO_METHOD = 'centerclip'
_BUILT_IN: dict[str, Callable[..., Method]] = {'expedit': Expedit, 'tome': Tome, 'average': Average}
_REGISTERED: dict[str, Callable[..., Method]] = {}


def register_method(name: str, method: Callable[..., Method]) -> None:
    """Make a method of reduction known to :func:`~clusterplug.patch.apply`.

    Args:
        name: What ``apply(model, name)`` calls it; a name that exists is replaced, all others stay.
        method: A class (a dataclass, for instance). Its constructor takes the options that ``apply`` passes on, by
            keyword. Its objects are called with ``(tokens (B, H, W, C), grid (h, w), compared)`` and return a
            :class:`Reduced` with h * w tokens, whose ``restore`` brings (B, h * w, C) back to (B, H, W, C);
            ``compared()`` are the tokens as the first reduced block normalizes them. The class has an attribute
            ``keeps_grid``: True where the reduced tokens are the cells of ``grid``, row by row; False where they are
            in any order, ``places`` are (B, h * w, 2), and the method is called with ``num_prefix=`` as well.

    Raises:
        TypeError: ``name`` is no string, ``method`` is no class, or has no bool ``keeps_grid``.
        ValueError: ``name`` is that of the video method.

    Example:
        >>> import dataclasses, torch
        >>> from clusterplug.patch import Reduced, register_method
        >>> @dataclasses.dataclass
        ... class Maximum:
        ...     keeps_grid = True
        ...     def __call__(self, tokens, grid, compared):
        ...         size = tokens.shape[1:3]
        ...         short = torch.nn.functional.adaptive_max_pool2d(tokens.movedim(-1, 1), grid)
        ...         rows, columns = ((torch.arange(n) + 0.5) * full / n - 0.5 for n, full in zip(grid, size))
        ...         def restore(refined):
        ...             maps = refined.mT.unflatten(2, grid)
        ...             return torch.nn.functional.interpolate(maps, size=tuple(size)).movedim(1, -1)
        ...         return Reduced(short.flatten(2).mT, restore, torch.cartesian_prod(rows, columns))
        >>> register_method('maximum', Maximum)
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be a string, got {type(name).__name__} ({name!r})')
    if name == VIDEO_METHOD:
        raise ValueError(f"name must not be '{VIDEO_METHOD}', the method for videos; choose another name")
    if not isinstance(method, type) or not any('__call__' in vars(each) for each in method.__mro__):
        raise TypeError(f'method must be a class whose objects can be called with tokens and a grid, got {method!r}')
    if not isinstance(getattr(method, 'keeps_grid', None), bool):
        raise TypeError(
            f'{method.__name__}.keeps_grid must be True (reduced tokens are the cells of the grid) or False, got '
            f'{getattr(method, "keeps_grid", None)!r}'
        )
    _REGISTERED[name] = method


def _all_methods() -> dict[str, Callable[..., Method]]:
    return {**_BUILT_IN, **_REGISTERED}


def make_method(name: str, options: dict, others: Sequence[str] = ()) -> Method:
    """Return the method ``name`` with its options; ``others`` are those of the call, for the message.

    Raises:
        ValueError: The name or an option is unknown, or an option out of range.
    """
    found = _all_methods()
    if name not in found:
        hint = nearest_name(name, [*found, VIDEO_METHOD])
        raise ValueError(f'method must be one of {", ".join(found)} or {VIDEO_METHOD}, got {name!r}{hint}')
    parameters = inspect.signature(found[name]).parameters.values()
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = sorted(set(options) - set(known))
    if unknown and not any(each.kind == each.VAR_KEYWORD for each in parameters):
        raise ValueError(unknown_options(name, known, others, unknown))
    return found[name](**options)
