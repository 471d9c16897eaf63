# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP inside a trained image tower: from one block on, segments of a video instead of its frames."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import backward_pass
from clusterplug.layers import SegmentTokenClustering, SegmentTokens
from clusterplug.layers.segment_token_clustering import SHIFTS
from clusterplug.patch._own_class import give_own_class, take_own_class
from clusterplug.patch._parts import Parts
from clusterplug.patch._store import Store, checkpointing_message
from clusterplug.patch.hosts.transformers_vit import without_mask
from clusterplug.patch.layout import Layout, own
from clusterplug.patch.methods import unknown_options

_IMAGES = ('pixel_values', 'x', 'image', 'images', 'input')
# The last module that the output of the attention passes before it is added: timm, open_clip, transformers, others.
_ATTENTION_EXITS = ('drop_path1', 'ls_1', 'self_attn', 'attn')


_SETTINGS = ('aggregation', 'metric', 'pre_norm', 'options')
_OPTIONS = ('num_segments', 'num_clusters', 'frames', 'reduction', *_SETTINGS)
# The names that README and configs use for the arguments of SegmentTokenClustering.
_ALIASES = {'after_block': 'start', 'segments': 'num_segments', 'clusters': 'num_clusters'}


def video_options(start: int | Sequence[int] | None, options: dict) -> dict:
    """Return the arguments of :class:`VideoSession` from those of ``apply``, each idea under one name.

    Raises:
        ValueError: An option is unknown, or given under both of its names.
    """
    found = {} if start is None else {'start': start}
    unknown = sorted(set(options) - {*_OPTIONS, *_ALIASES})
    if unknown:
        raise ValueError(unknown_options('centerclip', [*_OPTIONS, *_ALIASES], ['start', 'num_prefix'], unknown))
    for name, value in options.items():
        word = _ALIASES.get(name, name)
        if word in found or (word != name and word in options):
            raise ValueError(f'method centerclip takes {name} and {word} as two names of one option; pass one of them')
        found[word] = value
    return found


class VideoSession:
    """All hooks of one CenterCLIP patch.

    Args:
        layout: The transformer.
        start: First block that runs on segments instead of frames, 6 unless given; several for several stages.
        num_segments: Segments of each stage, 4 unless given; not for shifts.
        num_clusters: Tokens that a segment keeps, in each stage, 49 unless given; not for pooling and shifts.
        frames: T of videos that come as (B T, 3, H, W); those that come as (B, T, 3, H, W) say it themselves.
        reduction: Method of :class:`~clusterplug.layers.SegmentTokenClustering`.
        **settings: Its further arguments: ``aggregation``, ``metric``, ``pre_norm``, ``options``.
    """

    def __init__(
        self,
        layout: Layout,
        start: int | Sequence[int] | None = None,
        num_segments: int | Sequence[int] | None = None,
        num_clusters: int | Sequence[int] | None = None,
        frames: int | None = None,
        reduction: str = 'kmedoids',
        **settings,
    ):
        _check_host(layout)
        self.layout = layout
        self.frames = None if frames is None else _check_frames(frames)
        self.shifts = reduction in SHIFTS
        _warn_unused(reduction, dict(start=start, num_segments=num_segments, num_clusters=num_clusters))
        settings = dict(settings, method=reduction, num_prefix=layout.num_prefix)
        if self.shifts:
            # Shifts change every block and shorten nothing: the counts of the other methods say nothing to them.
            layer = _Plain(SegmentTokenClustering(**settings))
            self.stages = dict.fromkeys(range(len(layout.blocks)), layer)
        else:
            start, num_segments = 6 if start is None else start, 4 if num_segments is None else num_segments
            num_clusters = 49 if num_clusters is None else num_clusters
            self.stages = _make_stages(start, num_segments, num_clusters, settings, layout, reduction)
        self.store, self.handles, self.own = Store('centerclip'), [], []

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks that have hooks."""
        return tuple(self.stages)

    def attach(self, model: nn.Module) -> None:
        """Register everything; ``model`` holds the tower or is it."""
        self.parts = Parts(self.layout)
        self.own = [self.layout.blocks[index] for index in sorted({0, *self.indices})]
        for block in self.own:
            give_own_class(block, self.store)
        hook = _Hook(self, 'enter')
        self.handles.append(self.layout.trunk.register_forward_pre_hook(hook, with_kwargs=True))
        for index in self.stages:
            block = self.layout.blocks[index]
            self.handles.append(block.register_forward_pre_hook(_Hook(self, 'reduce', index), with_kwargs=True))
            if self.shifts and self.stages[index].layer.method == 'token_shift':
                exit_module = next(m for name in _ATTENTION_EXITS if (m := own(block, name)) is not None)
                self.handles.append(exit_module.register_forward_hook(_AttentionHook(self, index)))

    def detach(self) -> None:
        """Take everything away."""
        for handle in self.handles:
            handle.remove()
        for module in self.own:
            take_own_class(module)
        self.store.drop()
        self.handles, self.own = [], []

    @property
    def results(self) -> list[SegmentTokens]:
        """What the stages of the last forward pass kept, without the tokens themselves; empty when it was compiled."""
        return self.store.current.results

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before the tower: note the number of frames, put the frames of all videos into one batch."""
        self.parts.check()
        current = self.store.current
        current.task = backward_pass()
        self._check_replica(module)
        name = None if args else next((name for name in _IMAGES if name in kwargs), None)
        images = args[0] if args else kwargs.get(name)
        if not isinstance(images, Tensor) or images.dim() not in (4, 5):
            raise ValueError(
                f'{self.layout.host} patched with CenterCLIP takes (videos, frames, 3, height, width) or (videos * '
                f'frames, 3, height, width), got {tuple(getattr(images, "shape", ())) or type(images).__name__}'
            )
        current.frames = images.shape[1] if images.dim() == 5 else self.frames
        if current.frames is None:
            raise ValueError(
                'pixel_values must have shape (videos, frames, 3, height, width) unless frames is set, got '
                f'{tuple(images.shape)}; pass videos so, or apply the patch with frames=<frames of a video>'
            )
        if images.dim() == 4 and len(images) % current.frames:
            raise ValueError(
                f'a batch must hold whole videos of {current.frames} frames, got {len(images)} images; check frames'
            )
        current.mask = self.store.masks[-1] if self.store.masks else None
        if not torch.compiler.is_compiling():
            current.results = []
        if images.dim() == 4:
            return None
        images = images.flatten(0, 1)
        return ((images, *args[1:]), kwargs) if args else (args, {**kwargs, name: images})

    def reduce(self, index: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Hook before a block: put segments in the place of frames."""
        current = self.store.current
        name = None if args else next(name for name in ('hidden_states', 'x', 'q_x') if name in kwargs)
        tokens = args[0] if args else kwargs[name]
        frames, mask, again = self._frames(index, tokens)
        result = self.stages[index].layer.select(tokens.unflatten(0, (-1, frames)), mask)
        if not self.shifts:
            frames, mask = result.tokens.shape[1], result.segment_mask
        if again:
            current.again = (backward_pass(), index, frames, mask)
        elif not self.shifts:
            if not torch.compiler.is_compiling():
                current.results.append(result._replace(tokens=None))
            current.frames, current.mask = frames, mask
        tokens = result.tokens.flatten(0, 1)
        if self.shifts:
            current.block_input = tokens, frames
        return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, name: tokens})

    def _frames(self, index: int, tokens: Tensor) -> tuple[int, Tensor | None, bool]:
        """Return frames and mask of a block's input, and whether it is computed again in a backward pass."""
        current, store = self.store.current, self.store
        if torch.compiler.is_compiling():
            return current.frames, current.mask, False
        task = backward_pass()
        if task == current.task:
            store.remember(index, tokens, (current.frames, current.mask))
            return current.frames, current.mask, False
        given = store.recall(index, tokens)
        if given is not None and tokens.grad_fn is None:
            return *given, True  # the input that reentrant checkpointing kept
        # Blocks that are checkpointed together: only the first one's input was kept.
        behind = current.again if current.again and current.again[0] == task and current.again[1] < index else None
        if given is None:
            given = behind and behind[2:]
        if given is None or (behind and not _same(given, behind[2:])):
            raise RuntimeError(checkpointing_message(store.method))
        return *given, True

    def _check_replica(self, module: nn.Module) -> None:
        if module is not self.layout.trunk and self.store.masked:
            raise RuntimeError(
                'frame_mask does not reach the copies that DataParallel makes; use DistributedDataParallel, or call '
                'the model itself'
            )

    def shift_again(self, index: int, output):
        """Hook behind the attention of a block: shift the sum of input and attention, which the block makes next."""
        current = self.store.current
        if current.block_input is None:  # the attention alone is computed again
            raise RuntimeError(checkpointing_message(self.store.method))
        attended = output[0] if isinstance(output, tuple) else output
        (block_input, frames), current.block_input = current.block_input, None
        total = (block_input + attended).unflatten(0, (-1, frames))
        change = self.stages[index].layer(total).flatten(0, 1) - block_input
        return (change, *output[1:]) if isinstance(output, tuple) else change


def _same(given: tuple, other: tuple) -> bool:
    (frames, mask), (other_frames, other_mask) = given, other
    if mask is None or other_mask is None:
        return frames == other_frames and mask is other_mask
    return frames == other_frames and torch.equal(mask, other_mask)


class _Plain:
    """A layer that is no submodule of the model: ``state_dict`` and ``modules()`` stay as they were."""

    def __init__(self, layer: SegmentTokenClustering):
        self.layer = layer


class _Hook:
    """A hook that knows its block; a class, so that a copied model gets hooks of its own."""

    def __init__(self, session: VideoSession, what: str, index: int = -1):
        self.session, self.what, self.index = session, what, index

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict):
        if self.what == 'enter':
            return self.session.enter(module, args, kwargs)
        layer = self.session.stages[self.index].layer
        layer.training = module.training
        return self.session.reduce(self.index, args, kwargs)


class _AttentionHook:
    def __init__(self, session: VideoSession, index: int):
        self.session, self.index = session, index

    def __call__(self, module: nn.Module, args: tuple, output):
        return self.session.shift_again(self.index, output)


def _check_host(layout: Layout) -> None:
    if layout.maps or layout.needs_grid or layout.adapt not in (None, without_mask):
        raise ValueError(
            f'method centerclip needs blocks without windows, rotary or relative positions, which the blocks of '
            f'{type(layout.trunk).__name__} have: tokens of several frames have no common grid'
        )


def _check_frames(frames: int) -> int:
    try:
        return check_count(frames, 'frames', 1)
    except (TypeError, ValueError):
        raise ValueError(f'frames must be an int of at least 1, or None, got {frames!r}') from None


def _warn_unused(reduction: str, given: dict) -> None:
    """Warn of counts that a reduction has no use for."""
    unused = list(given) if reduction in SHIFTS else ['num_clusters'] if reduction == 'pooling' else []
    unused = [name for name in unused if given[name] is not None]
    if unused:
        warnings.warn(
            f"reduction '{reduction}' has no use for {', '.join(unused)}: "
            + ('it changes every block and shortens nothing' if reduction in SHIFTS else 'it keeps all tokens'),
            stacklevel=4,
        )


def _make_stages(start, num_segments, num_clusters, settings: dict, layout: Layout, reduction: str) -> dict:
    depth = len(layout.blocks)
    blocks = list(start) if isinstance(start, Sequence) and not isinstance(start, str) else [start]
    try:
        blocks = [check_count(block, 'start', 0, depth - 1) for block in blocks]
    except ValueError:
        raise ValueError(
            f'start or after_block must lie between 0 and {depth - 1}, the blocks of {layout.host}, got {blocks}'
        ) from None
    if not blocks or sorted(set(blocks)) != blocks:
        raise ValueError(f'start or after_block must name blocks in rising order, at least one, got {blocks}')
    per_stage = {}
    counts = dict(num_segments=num_segments, num_clusters=None if reduction == 'pooling' else num_clusters)
    for name, value in counts.items():
        values = list(value) if isinstance(value, Sequence) else [value] * len(blocks)
        if len(values) != len(blocks):
            raise ValueError(f'{name} must have one number for each of the {len(blocks)} start blocks, got {values}')
        per_stage[name] = [None if each is None else check_count(each, name, 1) for each in values]
    return {
        block: _Plain(SegmentTokenClustering(count, kept, **settings))
        for block, count, kept in zip(blocks, per_stage['num_segments'], per_stage['num_clusters'])
    }


@contextlib.contextmanager
def frame_mask(model: nn.Module, mask: Tensor | None) -> Iterator[VideoSession]:
    """Tell a model patched with ``method='centerclip'`` which frames of the next videos are real.

    Args:
        model: The patched model.
        mask: (B, T) bool, True = a frame of the video; None for all.

    Yields:
        The session, whose ``results`` name the kept tokens after a forward pass.

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: ``model`` is not patched so.

    Example:
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> from clusterplug import patch
        >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
        >>> config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
        >>> clip = CLIPVisionModel(config).eval()
        >>> clip = patch.apply(clip, method='centerclip', start=2, num_segments=3, num_clusters=10)
        >>> video, real = torch.randn(1, 6, 3, 32, 32), torch.tensor([[True, True, True, True, False, False]])
        >>> with torch.no_grad(), patch.frame_mask(clip, real) as session:
        ...     clip(pixel_values=video).pooler_output.shape
        torch.Size([3, 32])
        >>> session.results[0].segment_mask
        tensor([[ True,  True, False]])
    """
    session = next(
        (found for m in model.modules() if isinstance(found := vars(m).get('_clusterplug_patch'), VideoSession)), None
    )
    if session is None:
        raise ValueError(f"{type(model).__name__} is not patched; call patch.apply(model, method='centerclip') first")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        raise TypeError(f'mask must be a bool tensor (True = real frame), got {getattr(mask, "dtype", type(mask))}')
    masks, masked = session.store.masks, session.store.masked
    masks.append(mask)
    masked.append(True)
    try:
        yield session
    finally:
        masks.pop()
        masked.pop()
