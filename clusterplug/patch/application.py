# SPDX-License-Identifier: Apache-2.0
"""apply and remove."""

import numbers
from collections.abc import Iterable, Sequence

from torch import nn

from clusterplug.core.checks import check_count
from clusterplug.functional.tokens import check_grid
from clusterplug.patch._parts import check_one_transformer, check_tied
from clusterplug.patch._session import Session
from clusterplug.patch.hosts import find_layout
from clusterplug.patch.methods import VIDEO_METHOD, make_method

_MARK = '_clusterplug_patch'
# Names of the arguments of apply that are no options of a method.
APPLY_OPTIONS = ('start', 'end', 'grid', 'keep_ratio', 'num_prefix', 'taps')


def apply(
    model: nn.Module,
    method: str = 'expedit',
    *,
    start: int | Sequence[int] | None = None,
    end: int | None = None,
    grid: tuple[int, int] | None = None,
    keep_ratio: float | None = None,
    num_prefix: int | None = None,
    taps: Sequence[int] | None = None,
    **options,
) -> nn.Module:
    """Let the blocks ``start`` to ``end`` of a trained transformer run on fewer tokens.

    The model is changed in place, by hooks: weights, ``state_dict`` and the attention kernels stay as they are, its
    outputs keep their shapes, and :func:`remove` takes everything away. Tokens in front of the map (class, register,
    distillation) are never reduced. Intermediate features that the model hands out (``output_hidden_states``,
    ``forward_intermediates``, backbones) have the full size. Positions that blocks apply themselves (rotary
    embeddings, relative positions, windows) are those of the reduced tokens.

    Apply before ``torch.compile``. A transformer is found by parts of its own: in models that hold it and in wrappers
    around it, not where a wrapper stands for one of its parts. Gradients flow. Gradient checkpointing of the whole
    model gives the same gradients, and so does that inside of blocks without windows and without ``size_bias``; what
    would give others is refused by a RuntimeError. Any number of threads may call the model. Two transformers in one
    model are patched one by one.

    Args:
        model: A timm, transformers or torchvision transformer, or a model with one inside; see
            :func:`~clusterplug.patch.hosts`.
        method: ``'expedit'`` (local soft k-means, keeps a grid), ``'tome'`` (bipartite matching, at once or in every
            block) or ``'average'`` (pooling, the baseline). ``'centerclip'`` is for videos and never brings tokens
            back: of the arguments up to ``taps`` it takes ``start`` and ``num_prefix``, see the options. Further
            ones are those of :func:`~clusterplug.patch.register_method`.
        start: First block that sees fewer tokens. Defaults to 0.4 of all, to 1 for tome in every block, to 6 for
            centerclip, which takes several for several stages.
        end: Block before which the tokens are brought back. Defaults to after the last, or after the last of the stage.
        grid: (h, w) reduced tokens; must fit every image.
        keep_ratio: Share of the tokens to keep, above 0 and at most 1, where ``grid`` is not given. Defaults to 0.5.
            Hosts with windows keep about as many, so that windows are full; a warning says where that is all of them.
        num_prefix: Tokens in front of the map, if the model has others than clusterplug finds.
        taps: Blocks whose output must be of full size because something outside the model reads it (a hook).
        **options: Settings of the method: for expedit ``num_iters``, ``temperature`` or ``sharpness``, ``window``,
            ``num_neighbors``, ``norm``, ``search``, ``residual``, ``size_bias`` (attention counts a cluster as often
            as the tokens in it, default False); for tome ``compare``, ``residual``, ``size_bias`` (default True),
            ``every_block`` (merge some tokens in front of each block instead of all at ``start``),
            ``tokens_per_block`` (how many, instead of ``grid`` or ``keep_ratio``, which say what the last block
            sees); for average ``residual``; for centerclip ``num_segments`` (4), ``num_clusters`` (49), ``frames``
            where images come as (videos * frames, 3, H, W), ``reduction`` (``'kmedoids'``), ``aggregation``,
            ``metric``, ``pre_norm`` and ``options`` of :class:`~clusterplug.layers.SegmentTokenClustering`;
            ``after_block``, ``segments`` and ``clusters`` are other names of ``start``, ``num_segments`` and
            ``num_clusters``. Features are then those of (videos * segments).

    Returns:
        The model itself.

    Raises:
        TypeError: ``model`` is no module, a number has the wrong type.
        ValueError: The model is patched or compiled already, holds no known transformer or several, one with wrapped
            blocks, or has tied blocks; start, end, grid, keep_ratio, method or an option is unknown or out of range.
            During a forward pass: the grid is larger than the map, the number of tokens in front is wrong, tokens are
            NaN or infinite (on the CPU), ``size_bias`` has no effect on the attention of a block, the caller asks for
            maps of attention (``output_attentions``), which would be those of reduced tokens.
        RuntimeError: During a forward pass: blocks or the ``forward`` of one were changed since, or gradient
            checkpointing would give other gradients.

    Source:
        Liang et al., NeurIPS 2022 (expedit); Bolya et al., ICLR 2023 (tome); Zhao et al., SIGIR 2022 (centerclip).

        **Differs from the authors' code**: the temperature follows the spread of the tokens; the change of the
        clusters is carried back to the tokens (``residual``); reconstruction searches near clusters only; windows
        are clustered as one map, so no padding enters. ``residual=False, search=None, norm='l2'`` with the model's
        own ``temperature`` (50 for Segmenter) is the published layer, here in front of the final norm. Tome merges
        in front of a block, by its normalized input; theirs merges between attention and MLP, by the keys.

    Example:
        >>> import timm, torch
        >>> from clusterplug import patch
        >>> model = timm.create_model('vit_tiny_patch16_224', pretrained=False).eval()
        >>> model = patch.apply(model, start=4, keep_ratio=0.5)
        >>> model.forward_features(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 197, 192])
        >>> model = patch.remove(model)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, got {type(model).__name__}')
    if _sessions(model):
        raise ValueError('model is patched already, itself or a part of it; call clusterplug.patch.remove(model) first')
    layout = find_layout(model)
    _check_not_compiled(model, layout)
    if num_prefix is not None:
        layout.num_prefix = check_count(num_prefix, 'num_prefix', 0)
    if method == VIDEO_METHOD:
        given = dict(end=end, grid=grid, keep_ratio=keep_ratio, taps=taps)
        return _apply_to_videos(model, layout, start, [name for name in given if given[name] is not None], options)
    reducer = make_method(method, options, APPLY_OPTIONS)
    if not reducer.keeps_grid and (layout.maps or layout.needs_grid):
        raise ValueError(
            f"method '{method}' leaves tokens without a grid, which the blocks of {layout.host} need; use 'expedit' or "
            f"'average'"
        )
    _check_blocks_for(reducer, method, layout)
    if start is None and getattr(reducer, 'every_block', False):
        # The attention of the first block sees all tokens, as the authors' does.
        start = min(1, len(layout.blocks) - 1)
    start, end = _range(start, end, layout)
    if getattr(reducer, 'tokens_per_block', None) is not None and (grid is not None or keep_ratio is not None):
        raise ValueError('pass tokens_per_block, or grid or keep_ratio, not both')
    if grid is not None:
        if keep_ratio is not None:
            raise ValueError('pass grid or keep_ratio, not both')
        grid = check_grid(grid, (1 << 30, 1 << 30))
    keep_ratio = 0.5 if keep_ratio is None else keep_ratio
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, numbers.Real) or not 0 < keep_ratio <= 1:
        raise ValueError(f'keep_ratio must lie above 0 and at most at 1, got {keep_ratio!r}')
    return _attach(model, Session(layout, reducer, start, end, grid, float(keep_ratio), _check_taps(taps, layout)))


def _check_not_compiled(model: nn.Module, layout) -> None:
    """Raise where a part around or inside the transformer runs code that was compiled without the patch."""
    inside = {id(module) for module in layout.trunk.modules()}
    for name, module in model.named_modules():
        holds = id(module) in inside or any(each is layout.trunk for each in module.modules())
        if holds and ('_orig_mod' in vars(module).get('_modules', {}) or vars(module).get('_compiled_call_impl')):
            part = f'{name} ({type(module).__name__})' if name else 'model'
            raise ValueError(
                f'{part} is compiled already; call apply on the plain model, then torch.compile on the result'
            )


def _check_blocks_for(reducer, method: str, layout) -> None:
    """Raise where the blocks cannot do what the method asks of them."""
    if getattr(reducer, 'size_bias', False) and (layout.resize is not None or not layout.knows_sizes):
        raise ValueError(
            f'size_bias needs blocks in which every token attends to all others, which the blocks of {layout.host} '
            f'are not; pass size_bias=False'
        )
    if getattr(reducer, 'compare', 'tokens') == 'normalized' and layout.norm is not None:
        block = next((each for each in layout.blocks if layout.norm(each) is None), None)
        if block is not None:
            raise ValueError(
                f"method '{method}' compares tokens as a block normalizes them, and {type(block).__name__} of "
                f"{layout.host} has no norm in front that is known; pass compare='tokens'"
            )


def _check_taps(taps: Sequence[int] | None, layout) -> tuple[int, ...]:
    if taps is None:
        return ()
    depth = len(layout.blocks)
    message = f'taps must be numbers of blocks, 0 to {depth - 1}, got '
    if isinstance(taps, (str, bytes)) or not isinstance(taps, Iterable):
        raise TypeError(f'{message}{type(taps).__name__} ({taps!r}); pass a list')
    taps = list(taps)
    try:
        return tuple(check_count(tap, 'tap', 0, depth - 1) for tap in taps)
    except (TypeError, ValueError) as error:
        raise type(error)(f'{message}{taps}') from None


def _apply_to_videos(model: nn.Module, layout, start, refused: list[str], options: dict) -> nn.Module:
    from clusterplug.patch.video import VideoSession, video_options

    if refused:
        raise ValueError(
            f'method centerclip takes start, num_segments, num_clusters, frames and reduction, got '
            f'{", ".join(refused)}: its tokens are of segments of a video and never brought back'
        )
    return _attach(model, VideoSession(layout, **video_options(start, options)))


def _attach(model: nn.Module, session) -> nn.Module:
    layout = session.layout
    check_one_transformer(model, layout.trunk)
    check_tied(layout, session.indices)
    try:
        session.attach(model)
    except BaseException:
        session.detach()  # a model that is patched in part cannot be removed
        raise
    session.marked = [model, layout.trunk, *layout.blocks]
    for module in session.marked:
        setattr(module, _MARK, session)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Undo :func:`apply`: afterwards the model computes the same bits as before.

    What others have set since stays: hooks, a ``forward``, parts that replaced patched ones.

    Args:
        model: A patched model; one that holds several patched parts loses all patches.

    Returns:
        The model itself.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: It is not patched.

    Example:
        >>> import timm
        >>> from clusterplug import patch
        >>> model = timm.create_model('vit_tiny_patch16_224', pretrained=False)
        >>> patch.remove(patch.apply(model)) is model
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be a torch.nn.Module, got {type(model).__name__}')
    sessions = _sessions(model)
    if not sessions:
        raise ValueError(f'{type(model).__name__} is not patched; nothing to remove')
    for session in sessions:
        session.detach()
        for module in session.marked:
            vars(module).pop(_MARK, None)
    return model


def _sessions(model: nn.Module) -> list:
    found = (vars(module).get(_MARK) for module in model.modules())
    return list({id(session): session for session in found if session is not None}.values())


def _range(start: int | None, end: int | None, layout) -> tuple[int, int]:
    """Return the blocks to reduce, by default from 0.4 of all to the end of the stage."""
    depth = len(layout.blocks)
    stages = layout.stages or [range(depth)]
    if start is None:
        start = round(0.4 * depth)
        start = next((max(start, stage.start) for stage in stages if len(stage) and start < stage.stop), start)
    if end is None:
        end = next((stage.stop for stage in stages if start in stage), depth)
    start, end = (check_count(value, name, -depth - 1) for name, value in (('start', start), ('end', end)))
    if not 0 <= start < end <= depth:
        raise ValueError(
            f'start and end must satisfy 0 <= start < end <= {depth} (the blocks of {layout.host}), got start={start}, '
            f'end={end}'
        )
    if not any(start in stage and end <= stage.stop for stage in stages):
        ranges = ', '.join(f'{stage.start} to {stage.stop}' for stage in stages if len(stage))
        raise ValueError(
            f'start and end must lie in one stage of {layout.host} (blocks {ranges}), as the map changes its size '
            f'between them, got start={start}, end={end}'
        )
    return start, end
