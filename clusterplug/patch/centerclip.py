"""CenterCLIP inside a trained image tower: from one block on, segments of a video instead of its frames."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clusterplug.layers import SegmentTokenClustering, SegmentTokens
from clusterplug.layers.segment_token_clustering import SHIFTS
from clusterplug.patch._hosts import Layout
from clusterplug.patch._store import Store
from clusterplug.patch.transformers_vit import _without_mask

_IMAGES = ('pixel_values', 'x', 'image', 'images', 'input')
# The last module that the output of the attention passes before it is added: timm, open_clip, transformers, others.
_ATTENTION_EXITS = ('drop_path1', 'ls_1', 'self_attn', 'attn')


class VideoSession:
    """All hooks of one CenterCLIP patch.

    Args:
        layout: The transformer.
        after_block: Blocks that run on frames first; several numbers for several stages.
        segments: Segments of each stage; None for shifts.
        clusters: Tokens that a segment keeps, in each stage; None for pooling and shifts.
        frames: T of videos that come as (B T, 3, H, W); those that come as (B, T, 3, H, W) tell it themselves.
        reduction: Method of :class:`~clusterplug.layers.SegmentTokenClustering`.
        **settings: Its further arguments.
    """

    def __init__(
        self,
        layout: Layout,
        after_block: int | Sequence[int] = 6,
        segments: int | Sequence[int] | None = 4,
        clusters: int | Sequence[int] | None = 49,
        frames: int | None = None,
        reduction: str = 'kmedoids',
        **settings,
    ):
        _check_host(layout)
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise ValueError(f'frames must be an int of at least 1, or None, got {frames!r}')
        self.layout, self.frames, self.mask = layout, frames, None
        self.shifts = reduction in SHIFTS
        settings = dict(settings, method=reduction, num_prefix=layout.num_prefix)
        if self.shifts:
            # Shifts change every block and shorten nothing: the counts of the other methods say nothing to them.
            layer = _Plain(SegmentTokenClustering(**settings))
            self.stages = dict.fromkeys(range(len(layout.blocks)), layer)
        else:
            self.stages = _make_stages(after_block, segments, clusters, settings, layout, reduction)
        self.store, self.handles = Store(), []

    def attach(self) -> None:
        """Register everything."""
        hook = _Hook(self, 'enter')
        self.handles.append(self.layout.trunk.register_forward_pre_hook(hook, with_kwargs=True))
        for index in self.stages:
            block = self.layout.blocks[index]
            self.handles.append(block.register_forward_pre_hook(_Hook(self, 'reduce', index), with_kwargs=True))
            if self.shifts and self.stages[index].layer.method == 'token_shift':
                exit_module = next(m for name in _ATTENTION_EXITS if (m := getattr(block, name, None)) is not None)
                self.handles.append(exit_module.register_forward_hook(_AttentionHook(self, index)))

    def detach(self) -> None:
        """Take everything away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    @property
    def results(self) -> list[SegmentTokens]:
        """What the stages of the last forward pass kept, without the tokens themselves; empty when it was compiled."""
        return self.store.current.results

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before the tower: note the number of frames, put the frames of all videos into one batch."""
        current = self.store.current
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
        current.mask = self.mask
        if not torch.compiler.is_compiling():
            current.results, current.given = [], {}
        if images.dim() == 4:
            return None
        images = images.flatten(0, 1)
        return ((images, *args[1:]), kwargs) if args else (args, {**kwargs, name: images})

    def reduce(self, index: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Hook before a block: put segments in the place of frames."""
        current = self.store.current
        name = None if args else next(name for name in ('hidden_states', 'x', 'q_x') if name in kwargs)
        tokens = args[0] if args else kwargs[name]
        frames, mask, again = current.frames, current.mask, False
        if not torch.compiler.is_compiling():
            # Gradient checkpointing runs a block again, backwards: each remembers what it was given.
            again = index in current.given
            frames, mask = current.given.setdefault(index, (frames, mask))
        result = self.stages[index].layer.select(tokens.unflatten(0, (-1, frames)), mask)
        if not self.shifts and not again:
            if not torch.compiler.is_compiling():
                current.results.append(result._replace(tokens=None))
            current.frames, current.mask = result.tokens.shape[1], result.segment_mask
        tokens = result.tokens.flatten(0, 1)
        if self.shifts:
            current.block_input = tokens
        return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, name: tokens})

    def shift_again(self, index: int, output):
        """Hook behind the attention of a block: shift the sum of input and attention, which the block makes next."""
        current = self.store.current
        attended = output[0] if isinstance(output, tuple) else output
        total = (current.block_input + attended).unflatten(0, (-1, current.frames))
        change = self.stages[index].layer(total).flatten(0, 1) - current.block_input
        return (change, *output[1:]) if isinstance(output, tuple) else change


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
    if layout.maps or layout.needs_grid or layout.adapt not in (None, _without_mask):
        raise ValueError(
            f'method centerclip needs blocks without windows, rotary or relative positions, which the blocks of '
            f'{type(layout.trunk).__name__} have: tokens of several frames have no common grid'
        )


def _make_stages(after_block, segments, clusters, settings: dict, layout: Layout, reduction: str) -> dict[int, _Plain]:
    blocks = [after_block] if isinstance(after_block, int) else list(after_block)
    per_stage = {}
    for name, value in (('segments', segments), ('clusters', None if reduction == 'pooling' else clusters)):
        values = list(value) if isinstance(value, Sequence) else [value] * len(blocks)
        if len(values) != len(blocks):
            raise ValueError(f'{name} must have one number for each of the {len(blocks)} after_block, got {values}')
        per_stage[name] = values
    depth = len(layout.blocks)
    if any(isinstance(b, bool) or not isinstance(b, int) or not 0 <= b < depth for b in blocks):
        raise ValueError(f'after_block must lie between 0 and {depth - 1}, the blocks of {layout.host}, got {blocks}')
    if sorted(set(blocks)) != blocks:
        raise ValueError(f'after_block must name blocks in rising order, got {blocks}')
    return {
        block: _Plain(SegmentTokenClustering(count, kept, **settings))
        for block, count, kept in zip(blocks, per_stage['segments'], per_stage['clusters'])
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
        >>> clip = patch.apply(clip, method='centerclip', after_block=2, segments=3, clusters=10)
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
    session.mask = mask
    try:
        yield session
    finally:
        session.mask = None
