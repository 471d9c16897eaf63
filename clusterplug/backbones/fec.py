# SPDX-License-Identifier: Apache-2.0
"""FEC: an image backbone whose blocks cluster pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clusterplug.backbones._fec_stem import FECStem
from clusterplug.backbones.fec_archs import resolve_arch
from clusterplug.core.checks import check_mask, whole_number
from clusterplug.core.numerics import host_checks_allowed
from clusterplug.functional.features import FeatureClusters
from clusterplug.layers import FeatureClusteringBlock, FeatureClusteringPool
from clusterplug.layers.feature_clustering_pool import halve_mask
from clusterplug.layers.maps import MapNorm
from clusterplug.registry import MODELS


class LayerClusters(NamedTuple):
    """The clusters of one layer.

    Attributes:
        name: Of the layer, such as ``'stage 1 block 2'`` or ``'pool 1'``.
        kind: ``'encode'`` or ``'pool'``.
        clusters: As ``FeatureClustering.cluster`` or ``FeatureClusteringPool.cluster`` return them.
    """

    name: str
    kind: str
    clusters: FeatureClusters


@MODELS.register_module()
class FEC(nn.Module):
    """Feature extraction with clustering: pixels are points, every layer groups them.

    A 4x4 convolution with stride 4 over the image and two coordinates; stages of
    :class:`~clusterplug.layers.FeatureClusteringBlock`; between stages
    :class:`~clusterplug.layers.FeatureClusteringPool`, which halves the map by clustering it.

    With ``num_classes`` the result is logits; without, the normalized maps of the stages ``out_indices``, at strides
    4, 8, 16 and 32, for necks and heads of mmdet, mmseg and mmpretrain.

    Args:
        arch: ``'small'`` (5.7 M parameters with 1000 classes), ``'base'`` (15.1 M), ``'large'``
            (29.7 M), or a dict as :func:`~clusterplug.backbones.resolve_arch` takes it. Defaults to ``'small'``.
        num_classes: 0 = feature maps. Defaults to 0.
        in_channels: Of the image. Defaults to 3.
        out_indices: Stages whose maps are returned, by default all.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``: the grids and folds that the authors
            use for it. Weights fit all three. Defaults to ``'classification'``.
        aggregate: ``'mean'``, ``'similarity'`` or ``'soft'``, see :class:`~clusterplug.layers.FeatureClustering`.
        pool_similarity: ``'learned'`` or ``'official'``, see
            :class:`~clusterplug.layers.FeatureClusteringPool`. The same outputs for given weights; with
            ``'official'``, the projections of the poolings keep their random weights. Defaults to ``'learned'``.
        drop_path_rate: Of the last block; grows linearly from 0. Defaults to 0.
        with_cp: Recompute each block in backward instead of keeping what it made: less memory, more time.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``, as mm models have it.

    Raises:
        TypeError, ValueError: A setting is out of range.

    Source:
        Chen et al., "Neural Clustering based Visual Representation Learning", CVPR 2024; official code
        guikunchen/FEC (Apache-2.0). Weights of theirs: ``tools/model_converters/fec.py``.

        **Differs from the authors' code**: the projections by which poolings compare pixels are trained; any image
        size; masks for padded batches; no tensor of centers x points x channels.

    Example:
        >>> model = FEC('small', num_classes=10).eval()
        >>> model(torch.randn(2, 3, 64, 96)).shape
        torch.Size([2, 10])
        >>> [tuple(map_.shape[1:]) for map_ in FEC('small')(torch.randn(1, 3, 64, 96))]
        [(32, 16, 24), (64, 8, 12), (196, 4, 6), (320, 2, 3)]
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        num_classes: int = 0,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        task: str = 'classification',
        aggregate: str = 'mean',
        pool_similarity: str = 'learned',
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__()
        self.arch = sizes = resolve_arch(arch, task)
        out_indices = range(len(sizes.dims)) if out_indices is None else out_indices
        _check_counts(num_classes, in_channels, out_indices, len(sizes.dims))
        self.num_classes, self.in_channels, self.with_cp, self.init_cfg = num_classes, in_channels, with_cp, init_cfg
        last = len(sizes.dims) - 1
        self.out_indices = (last,) if num_classes else tuple(out_indices)
        self.out_channels = [sizes.dims[stage] for stage in self.out_indices]
        self.num_features = sizes.dims[-1]
        self.stem = FECStem(in_channels, sizes.dims[0])
        depth = sum(sizes.blocks)
        rates = [drop_path_rate * number / max(1, depth - 1) for number in range(depth)]
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        for stage, dim in enumerate(sizes.dims):
            self.stages.append(
                nn.ModuleList(
                    FeatureClusteringBlock(
                        dim,
                        mlp_ratio=sizes.mlp_ratios[stage],
                        drop_path_rate=rates.pop(0),
                        layer_scale=sizes.layer_scale,
                        heads=sizes.heads[stage],
                        head_dim=sizes.head_dims[stage],
                        grid=sizes.grid[stage],
                        fold=sizes.fold[stage],
                        aggregate=aggregate,
                    )
                    for _ in range(sizes.blocks[stage])
                )
            )
            if stage < last:
                self.pools.append(
                    FeatureClusteringPool(dim, sizes.dims[stage + 1], sizes.fold[stage + 1], pool_similarity)
                )
        self.norms = nn.ModuleDict({str(stage): MapNorm(sizes.dims[stage]) for stage in self.out_indices})
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Logits, or maps of the stages.

        Args:
            x: (B, in_channels, H, W), any H and W; B may be 0.
            mask: (B, H, W) bool, True = valid: where images of a batch end that were padded to one size. Each is
                treated as if it were alone.

        Returns:
            (B, num_classes), or a tuple of (B, C, H', W'), 0 outside the mask.

        Raises:
            TypeError: ``x`` is no floating tensor.
            ValueError: The shape is wrong; an image is NaN or infinite (looked for on the CPU only).
        """
        maps, mask = self._run(x, mask)
        if not self.num_classes:
            return tuple(maps)
        return self.head(self._average(maps[-1], mask))

    def clusters(self, x: Tensor, mask: Tensor | None = None) -> list[LayerClusters]:
        """The clusters of every layer, from the image on; arguments as :meth:`forward`."""
        found = []
        self._run(x, mask, found)
        return found

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalized map (B, C, H', W') of the last stage that is returned, as timm models have it."""
        return self._run(x, None)[0][-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or pooled features (B, C), of what :meth:`forward_features` returned."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new head for ``num_classes`` in place of the last one."""
        if not self.num_classes or num_classes < 1:
            raise ValueError(
                f'num_classes must be at least 1 on a model built with a head, got {num_classes} and a model with '
                f'{self.num_classes}; build FEC(num_classes=0) for feature maps'
            )
        weight = self.head.weight
        self.head = nn.Linear(self.num_features, num_classes).to(weight.device, weight.dtype)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.num_classes = num_classes

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``; mm models call this. Random weights are there from the start."""
        if self.init_cfg is None:
            return
        from clusterplug.backbones.fec_checkpoint import load_fec

        if self.init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in self.init_cfg:
            raise ValueError(f"init_cfg must be dict(type='Pretrained', checkpoint=...), got {self.init_cfg!r}")
        load_fec(self, self.init_cfg['checkpoint'], new_head=True)

    def _run(self, x: Tensor, mask: Tensor | None, found: list | None = None) -> tuple[list[Tensor], Tensor | None]:
        self._check(x, mask)
        x, mask = self.stem(x, mask)
        maps = []
        for stage, blocks in enumerate(self.stages):
            for number, block in enumerate(blocks):
                if found is not None:
                    x, clusters = block.cluster(x, mask)
                    found.append(LayerClusters(f'stage {stage + 1} block {number + 1}', 'encode', clusters))
                elif self.with_cp and self.training and torch.is_grad_enabled():
                    x = checkpoint(block, x, mask, use_reentrant=False)
                else:
                    x = block(x, mask)
            if stage in self.out_indices:
                maps.append(self.norms[str(stage)](x, mask))
            if stage < len(self.pools):
                x, clusters = self.pools[stage].cluster(x, mask)
                mask = halve_mask(mask)
                if found is not None:
                    found.append(LayerClusters(f'pool {stage + 1}', 'pool', clusters))
        return [maps[sorted(self.out_indices).index(stage)] for stage in self.out_indices], mask

    def _average(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return x.mean((2, 3))
        return (x * mask[:, None]).sum((2, 3)) / mask.sum((1, 2)).clamp_min(1)[:, None]

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (batch, channels, height, width), got {got}')
        if x.dim() != 4 or 0 in x.shape[2:]:
            raise ValueError(f'x must have shape (batch, channels, height, width), got {tuple(x.shape)}')
        if x.shape[1] != self.in_channels:
            grey = ', or repeat the channel with x.expand(-1, 3, -1, -1)' if x.shape[1] == 1 else ''
            raise ValueError(
                f'x must have {self.in_channels} channels, got {x.shape[1]}; build the model with '
                f'in_channels={x.shape[1]}{grey}'
            )
        check_mask(mask, (x.shape[0], *x.shape[2:]), x.device)
        if host_checks_allowed(x) and not torch.onnx.is_in_onnx_export():
            _check_images(x, mask)


def _check_images(x: Tensor, mask: Tensor | None) -> None:
    """Raise if a valid pixel is NaN or infinite, naming the images."""
    if bool(torch.isfinite(x.detach().sum())):
        return
    bad = ~torch.isfinite(x).all(1)
    bad = (bad if mask is None else bad & mask).flatten(1).any(1)
    if bad.any():
        raise ValueError(
            f'x must be finite, got NaN or inf in the images {bad.nonzero().flatten().tolist()[:5]} of the batch; '
            f'look at what the data pipeline made of them'
        )


def _check_counts(num_classes: int, in_channels: int, out_indices: Sequence[int], stages: int) -> None:
    for name, value, least in (('num_classes', num_classes, 0), ('in_channels', in_channels, 1)):
        whole_number(name, value, least=least)
    allowed = range(stages)
    if not len(out_indices) or any(index not in allowed for index in out_indices):
        raise ValueError(f'out_indices must be among {list(allowed)}, got {tuple(out_indices)}')
