"""apply and remove."""

from collections.abc import Sequence

from torch import nn

from clusterplug.functional._token_checks import check_grid
from clusterplug.patch._hosts import find_layout
from clusterplug.patch._methods import make_method
from clusterplug.patch._own_class import give_own_class, take_own_class
from clusterplug.patch._session import Session

_MARK = '_clusterplug_patch'


def apply(
    model: nn.Module,
    method: str = 'expedit',
    *,
    start: int | None = None,
    end: int | None = None,
    grid: tuple[int, int] | None = None,
    keep_ratio: float | None = None,
    num_prefix: int | None = None,
    taps: Sequence[int] = (),
    **options,
) -> nn.Module:
    """Let the blocks ``start`` to ``end`` of a trained transformer run on fewer tokens.

    The model is changed in place, by hooks: weights, ``state_dict`` and the attention kernels stay as they are, its
    outputs keep their shapes, and :func:`remove` takes everything away. Tokens in front of the map (class, register,
    distillation) are never reduced. Intermediate features that the model hands out (``output_hidden_states``,
    ``forward_intermediates``, backbones) have the full size. Positions that blocks apply themselves (rotary
    embeddings, relative positions, windows) are those of the reduced tokens.

    Apply before ``torch.compile``. Gradients flow; gradient checkpointing is not supported.

    Args:
        model: A timm, transformers or torchvision transformer, or a model with one inside; see
            :func:`~clusterplug.patch.hosts`.
        method: ``'expedit'`` (local soft k-means, keeps a grid), ``'tome'`` (bipartite matching) or ``'average'``
            (pooling, the baseline). ``'centerclip'`` is for videos and never brings tokens back: it takes none of
            the arguments up to ``taps`` but ``num_prefix``, see the options.
        start: Blocks that run on all tokens first. Defaults to 0.4 of all.
        end: Block before which the tokens are brought back. Defaults to after the last, or after the last of the stage.
        grid: (h, w) reduced tokens; must fit every image.
        keep_ratio: Share of the tokens to keep, above 0 and at most 1, where ``grid`` is not given. Defaults to 0.5.
            Hosts with windows keep about as many, so that windows are full.
        num_prefix: Tokens in front of the map, if the model has others than clusterplug finds.
        taps: Blocks whose output must be of full size because something outside the model reads it (a hook).
        **options: Settings of the method: for expedit ``num_iters``, ``temperature`` or ``sharpness``, ``window``,
            ``num_neighbors``, ``norm``, ``search``, ``residual``; for tome ``compare``, ``residual``; for average
            ``residual``; for centerclip ``after_block`` (6), ``segments`` (4), ``clusters`` (49), ``frames`` where
            images come as (videos * frames, 3, H, W), ``reduction`` (``'kmedoids'``) and further settings of
            :class:`~clusterplug.layers.SegmentTokenClustering`. Features are then those of (videos * segments).

    Returns:
        The model itself.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: The model is patched or compiled already or holds no known transformer; start, end, grid,
            keep_ratio, method or an option is out of range. During a forward pass: the grid is larger than the map,
            the number of tokens in front is wrong, tokens are NaN or infinite (on the CPU).

    Source:
        Liang et al., NeurIPS 2022 (expedit); Bolya et al., ICLR 2023 (tome); Zhao et al., SIGIR 2022 (centerclip).

        **Differs from the authors' code**: the temperature follows the spread of the tokens; the change of the
        clusters is carried back to the tokens (``residual``); reconstruction searches near clusters only; windows
        are clustered as one map, so no padding enters. ``temperature=50, residual=False, search=None, norm='l2'`` is
        the published form. Tome merges once, before block ``start``, and undoes it at ``end``.

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
    if hasattr(model, '_orig_mod'):
        raise ValueError('model is compiled already; call apply on the plain model, then torch.compile on the result')
    if _find_patched(model) is not None:
        raise ValueError('model is patched already; call clusterplug.patch.remove(model) first')
    layout = find_layout(model)
    if num_prefix is not None:
        layout.num_prefix = num_prefix
    if method == 'centerclip':
        given = dict(start=start, end=end, grid=grid, keep_ratio=keep_ratio, taps=taps or None)
        return _apply_to_videos(model, layout, {name: value for name, value in given.items() if value}, options)
    reducer = make_method(method, options)
    if not reducer.keeps_grid and (layout.maps or layout.needs_grid):
        raise ValueError(
            f"method '{method}' leaves tokens without a grid, which the blocks of {layout.host} need; use 'expedit' or "
            f"'average'"
        )
    depth = len(layout.blocks)
    start, end = _range(start, end, layout)
    if grid is not None:
        if keep_ratio is not None:
            raise ValueError('pass grid or keep_ratio, not both')
        grid = check_grid(grid, (1 << 30, 1 << 30))
    keep_ratio = 0.5 if keep_ratio is None else keep_ratio
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float)) or not 0 < keep_ratio <= 1:
        raise ValueError(f'keep_ratio must lie above 0 and at most at 1, got {keep_ratio!r}')
    if any(isinstance(tap, bool) or not isinstance(tap, int) or not 0 <= tap < depth for tap in taps):
        raise ValueError(f'taps must be numbers of blocks, 0 to {depth - 1}, got {list(taps)}')
    return _attach(model, Session(layout, reducer, start, end, grid, keep_ratio, taps))


def _apply_to_videos(model: nn.Module, layout, refused: dict, options: dict) -> nn.Module:
    if refused:
        raise ValueError(
            f'method centerclip takes after_block, segments, clusters, frames and reduction, got {", ".join(refused)}'
        )
    from clusterplug.patch.centerclip import VideoSession

    return _attach(model, VideoSession(layout, **options))


def _attach(model: nn.Module, session) -> nn.Module:
    session.attach()
    give_own_class(session.layout.blocks[0])
    setattr(model, _MARK, session)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Undo :func:`apply`: afterwards the model computes the same bits as before.

    Args:
        model: A patched model.

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
    patched = _find_patched(model)
    if patched is None:
        raise ValueError(f'{type(model).__name__} is not patched; nothing to remove')
    session = getattr(patched, _MARK)
    session.detach()
    take_own_class(session.layout.blocks[0])
    delattr(patched, _MARK)
    return model


def _find_patched(model: nn.Module) -> nn.Module | None:
    return next((module for module in model.modules() if _MARK in vars(module)), None)


def _range(start: int | None, end: int | None, layout) -> tuple[int, int]:
    """Return the blocks to reduce, by default from 0.4 of all to the end of the stage."""
    depth = len(layout.blocks)
    stages = layout.stages or [range(depth)]
    if start is None:
        start = round(0.4 * depth)
        start = next((max(start, stage.start) for stage in stages if len(stage) and start < stage.stop), start)
    if end is None:
        end = next((stage.stop for stage in stages if start in stage), depth)
    for name, value in (('start', start), ('end', end)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{name} must be an int, got {type(value).__name__} ({value!r})')
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
