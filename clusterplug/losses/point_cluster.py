# SPDX-License-Identifier: Apache-2.0
"""Within-class clustering of point embeddings as an auxiliary training loss."""

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import whole_number
from clusterplug.core.constants import arange
from clusterplug.core.distributed import gather_ranks, world_size
from clusterplug.core.numerics import backward_pass, keep_fp32
from clusterplug.core.padded_classes import PaddedClasses
from clusterplug.functional.contrast import check_temperature, region_means
from clusterplug.heads import ProjectionHead
from clusterplug.losses._inputs import check_cells, check_inputs
from clusterplug.losses._parts import build_part, move_options
from clusterplug.losses.anchor_sampler import AnchorSampler
from clusterplug.losses.balanced_assigner import BalancedAssigner
from clusterplug.losses.position_regression import PositionRegression
from clusterplug.losses.subclass_contrast import TERMS as TERMS, SubclassContrast
from clusterplug.memory import SubclassMemory
from clusterplug.registry import MODELS

REGIONS = ('point', 'cell', 'instance')
# Anchors of all classes, so that the cost does not grow with the square of the number of classes.
_MOST_ANCHORS = 1024
_FEWEST_ANCHORS = 4
_LARGEST_FEATURE = 1e15


def _all_ranks(by_rank: Tensor) -> Tensor:
    """(R, C, V, ...) of all ranks as (C, V R, ...), in which ranks take turns."""
    return by_rank.transpose(0, 1).transpose(1, 2).flatten(1, 2)


def _check_fraction(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    if not low <= value <= high:
        raise ValueError(f'{name} must be from {low:g} to {high:g}, got {value}')


@MODELS.register_module()
class PointClusterLoss(nn.Module):
    r"""Split every class into subclasses online, pull each point to its own subclass and away from all others.

    In a training step: (1) up to ``num_anchors_per_class`` points of each class are drawn, half of them wrongly
    predicted; (2) their projected, normalized embeddings, or those of the mean feature of the region that each lies in,
    are split over the K centers of their class by balanced optimal transport, solved to its limit; (3) three InfoNCE
    terms compare each anchor with remembered embeddings (``queue``), with the other anchors (``point``) and with all
    centers (``center``); (4) the memory takes in the anchors. Each term is

    .. math:: \text{loss\_weight} \cdot \frac{\tau}{\tau_\text{base}} \cdot \text{mean over anchors with a positive}.

    Everything runs in fp32 with autocast off, also in a model that was cast to another type, in about 240 launches,
    without host synchronization. Nothing of it is used at test time. In a distributed run the anchors of all ranks form
    one set: the state and the mean gradient equal those of one process with the joined batch, provided that no class
    exceeds its anchors, no subclass has more new anchors than ``enqueue_per_step`` and no ring is full (which of them
    enter is a draw; so is that of seeds). ``max_anchors`` and the default of ``num_anchors_per_class`` are per rank.
    Each rank adds four collectives forward (seven with regions) and one backward a step, whatever its data.

    Cost: anchors times anchors, centers and remembered embeddings. By default at most about 1,000 anchors are drawn,
    and each is compared with at most about 5,000 remembered embeddings, up to some hundred classes.

    Args:
        num_classes: C; labels outside 0 .. C-1 other than ``ignore_index`` are an error.
        in_channels: width of the features; None where :func:`~clusterplug.attach.WithClustering` finds it.
        num_clusters: K, for all classes or one per class (see :class:`~clusterplug.memory.SubclassMemory`).
        embed_dims: D.
        momentum: share of a center kept in a step.
        temperature: tau.
        num_anchors_per_class: V, default the smaller of 2 K and 1024 / C, at least 4.
        queue_len: remembered embeddings per subclass.
        regions: what is assigned as one: ``'point'``: each anchor for itself (the paper). ``'cell'``: all points of one
            class in connected cells (``cell_size`` of the assigner; in images connected pixels), by the mean of their
            features. ``'instance'``: likewise all points of an object, where the labels or boxes name objects, else
            cells. Found by :func:`~clusterplug.attach.WithClustering`, or passed to ``forward``.
        loss_weight: factor on each term. With 0 the memory still learns.
        ignore_index: label of ignored points; may be one of 0 .. C-1 (a model with an output for ignored points).
        projector: module or config from (N, in_channels) to (N, embed_dims); default :class:`ProjectionHead`.
        assigner: how anchors are split over the centers: module or config, default
            :class:`~clusterplug.losses.BalancedAssigner` (``epsilon``, ``num_iters``, ``cell_size``,
            ``position_period``).
        sampler: which rows are anchors: module or config, default :class:`~clusterplug.losses.AnchorSampler`
            (``max_anchors``, ``enqueue_per_step``).
        contrast: what anchors are compared with: module or config, default
            :class:`~clusterplug.losses.SubclassContrast` (``terms``, ``reference``, ``max_negatives``).
        sinkhorn_eps, sinkhorn_iters, cell_size, max_anchors, enqueue_per_step, terms, reference: former names of
            options of the three parts; they warn (DeprecationWarning) and name the new place.

    Shapes:
        ``features`` (N, in_channels) floating, ``labels`` (N,) integer, ``predictions`` (N,) integer classes, (N, C)
        logits, or None (all points count as easy). ``feature_rows`` (N,) int64 where the features belong to something
        coarser than the labels: the row of the features for each label; there may be any number of rows then.
        ``regions`` (N,) int64: region of each label, with labels of one class in it; below 0 = by itself. Needed when
        ``regions`` of the constructor is not ``'point'``. ``cells`` (M, 1 to 3) int64: coordinates of the features in
        their grid. Needed when the assigner has a ``position_period``.

    Returns of ``forward``:
        dict ``loss_cluster_<term>`` -> 0-dim fp32 tensor. 0 with a gradient path where there is nothing to compare
        (empty batch, all points ignored, first sight of every class). Rows with NaN, inf or numbers above 1e15 are
        ignored, as are rows of which the projector makes NaN or inf: none of them reaches the memory.

    Raises:
        ValueError, TypeError: arguments or inputs that do not fit; a label out of range (on CUDA a device-side assert,
            as for cross entropy, since looking would stop the device).
        RuntimeError: gradient checkpointing computes a training step again.

    Source: Feng, Wang, Wang, Yang, Zheng, "Clustering based Point Cloud Representation Learning for 3D Analysis",
    ICCV 2023, section 3; official code FengZicai/Cluster3DSeg (MIT), ``spvnas/cluster_contrastloss.py``.

    Differs from the authors' code: samples first and projects only the anchors; no loop over classes; state in the
    checkpoint and equal on all ranks; and the bugs named in :class:`~clusterplug.memory.SubclassMemory`,
    :func:`~clusterplug.functional.subclass_contrast` and :func:`~clusterplug.functional.assign_subclasses`.

    Example:
        >>> loss = PointClusterLoss(num_classes=2, in_channels=8, num_clusters=3)
        >>> terms = loss(torch.randn(100, 8), torch.randint(0, 2, (100,)))
        >>> sorted(terms)
        ['loss_cluster_center', 'loss_cluster_point', 'loss_cluster_queue']
    """

    base_temperature = 2.0

    zero: Tensor
    in_channels: int | None

    def __init__(
        self,
        num_classes: int,
        in_channels: int | None = None,
        num_clusters: int | Sequence[int] | dict = 40,
        embed_dims: int = 64,
        momentum: float = 0.9999,
        temperature: float = 0.1,
        num_anchors_per_class: int | None = None,
        queue_len: int = 50,
        regions: str = 'point',
        loss_weight: float = 0.5,
        ignore_index: int = 255,
        projector: nn.Module | dict | None = None,
        assigner: nn.Module | dict | None = None,
        sampler: nn.Module | dict | None = None,
        contrast: nn.Module | dict | None = None,
        *,
        sinkhorn_eps: float | None = None,
        sinkhorn_iters: int | None = None,
        cell_size: float | None = None,
        max_anchors: int | None = None,
        enqueue_per_step: int | None = None,
        terms: Sequence[str] | None = None,
        reference: bool | None = None,
    ):
        super().__init__()
        check_temperature(temperature)
        _check_fraction('momentum', momentum)
        _check_fraction('loss_weight', loss_weight, 0.0, float('inf'))
        num_classes = whole_number('num_classes', num_classes)
        num_anchors_per_class = whole_number('num_anchors_per_class', num_anchors_per_class, optional=True)
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | Integral):
            raise ValueError(f'ignore_index must be an int, got {ignore_index!r}')
        if regions not in REGIONS:
            raise ValueError(f'regions must be one of {REGIONS}, got {regions!r}')
        if projector is None and in_channels is None:
            raise ValueError('in_channels must be given where no model is wrapped: the width of the features')
        former = dict(
            sinkhorn_eps=(sinkhorn_eps, 'assigner', 'epsilon'),
            sinkhorn_iters=(sinkhorn_iters, 'assigner', 'num_iters'),
            cell_size=(cell_size, 'assigner', 'cell_size'),
            max_anchors=(max_anchors, 'sampler', 'max_anchors'),
            enqueue_per_step=(enqueue_per_step, 'sampler', 'enqueue_per_step'),
            terms=(terms, 'contrast', 'terms'),
            reference=(reference, 'contrast', 'reference'),
        )
        parts = move_options(
            'PointClusterLoss', dict(assigner=assigner, sampler=sampler, contrast=contrast), former, stacklevel=3
        )
        self.assigner = build_part('assigner', parts['assigner'], BalancedAssigner)
        self.sampler = build_part('sampler', parts['sampler'], AnchorSampler)
        self.contrast = build_part('contrast', parts['contrast'], SubclassContrast)
        self.memory = SubclassMemory(num_classes, num_clusters, embed_dims, queue_len, self.sampler.enqueue_per_step)
        if projector is None:
            assert in_channels is not None, 'as checked'
            projector = ProjectionHead(in_channels, embed_dims)
        self.projector: nn.Module = MODELS.build(projector) if isinstance(projector, dict) else projector
        self.num_classes, self.in_channels, self.ignore_index = num_classes, in_channels, int(ignore_index)
        self.momentum, self.temperature, self.loss_weight = momentum, temperature, loss_weight
        few = max(_FEWEST_ANCHORS, _MOST_ANCHORS // num_classes)
        self.num_anchors_per_class = num_anchors_per_class or min(2 * self.memory.num_clusters, few)
        period = getattr(self.assigner, 'position_period', None)
        self.positions = PositionRegression(num_classes, embed_dims, period) if period else None
        self.regions = regions
        self.weight_factor = 1.0  # what a schedule changes
        self.register_buffer('zero', torch.zeros(()), persistent=False)
        self.to(torch.float32)  # also where torch's default type is another

    def _apply(self, fn, recurse=True):
        """Move with the model, but compute and keep state in fp32 when it is cast."""
        return super()._apply(keep_fp32(fn, widen=False), recurse)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        predictions: Tensor | None = None,
        feature_rows: Tensor | None = None,
        regions: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if self.training and backward_pass() != -1:
            raise RuntimeError(
                'PointClusterLoss must not be computed again by gradient checkpointing: its memory has moved on since, '
                'so that the gradient would be that of another loss; pass the layers to checkpoint, not the loss'
            )
        design = None if self.positions is None else self.positions.design(check_cells(features, cells))
        features, labels, predictions, feature_rows, regions = check_inputs(
            self, features, labels, predictions, feature_rows, regions
        )
        slots = PaddedClasses(self.num_classes, self.num_anchors_per_class)
        with torch.autocast(features.device.type, enabled=False):
            rows, valid = self.sampler(
                labels,
                predictions,
                num_classes=self.num_classes,
                num_anchors_per_class=self.num_anchors_per_class,
                num_slots=slots.shape[1],  # the dummy stays empty, as the assigner needs it
                generator=self.memory.generator(0),
            )
            rows = rows.flatten()
            picked = rows if feature_rows is None else feature_rows[rows]
            anchors, valid = self._embed(features[picked], valid)
            by_rank = gather_ranks(anchors)
            # (R, C, V, ...) to (C, V * R, ...): the anchors of all ranks are one set, and take turns in it, as only the
            # first few of a subclass enter its queue
            everyone, everyone_valid = _all_ranks(by_rank.detach()), _all_ranks(gather_ranks(valid))
            with torch.no_grad():
                units, units_valid, unit_of = everyone, everyone_valid, None
                if self.regions != 'point' and regions is not None:  # as checked
                    units, units_valid, unit_of = self._units(features, regions, rows, valid, feature_rows)
                told = None  # what the rows tell of their position, (C, V R, P)
                if design is not None and self.positions is not None:
                    told = _all_ranks(gather_ranks(design[picked].view(*valid.shape, -1)))
                    units_told = told
                    if unit_of is not None and regions is not None:
                        means = region_means(design, regions, rows, valid.flatten(), feature_rows).means
                        units_told = _all_ranks(gather_ranks(means.view(*valid.shape, -1)))
                    units = self.positions(units, units_told)
                unit_ids, left_out, distance = self.assigner(units, units_valid, self.memory)
                ids = unit_ids
                if unit_of is not None:
                    ids = self.memory.layout.ignore(unit_ids.gather(1, unit_of), ~everyone_valid)
                    left_out = self.memory.layout.is_ignored(ids)
            subclass = ids + self.memory.id_offset
            names, values, counts = self.contrast(anchors, by_rank, subclass, left_out, self.memory, self.temperature)
            losses = self._mean_over_ranks(values, counts)
            if self.training:
                of_units = (units, unit_ids) if units is not everyone else None
                self.memory.update(everyone, ids, distance, units_valid, self.momentum, of_units, subclass)
                if told is not None and self.positions is not None:
                    self.positions.update(everyone, told, everyone_valid)
        return {f'loss_cluster_{name}': loss for name, loss in zip(names, losses, strict=True)}

    def _units(
        self, features: Tensor, regions: Tensor, rows: Tensor, valid: Tensor, feature_rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of the regions of the anchors of all ranks, each at the slot of the first anchor in it.

        Returns:
            (C, V R, D) embeddings; (C, V R) bool, slots that hold one; (C, V R) the slot of each anchor's region.
        """
        means, first, leader = region_means(features, regions, rows, valid.flatten(), feature_rows)
        embedded, ready = self._embed(means, first.view_as(valid) & valid)
        # all anchors of a region are of one class, so the slot of its first one is in the same row
        slot = gather_ranks((leader % valid.shape[1]).view_as(valid))
        ranks = arange(slot.shape[0], slot.device)[:, None, None]
        return (
            _all_ranks(gather_ranks(embedded)),
            _all_ranks(gather_ranks(ready)),
            _all_ranks(slot * slot.shape[0] + ranks),
        )

    def _embed(self, picked: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(C, V + 1, D) unit rows of features (C (V + 1), in_channels), and which of them hold a finite one."""
        picked = picked.float()
        # before the projector: 0 * NaN would still be NaN in its gradient, and squares of larger numbers overflow
        finite = torch.linalg.vector_norm(picked, torch.inf, dim=1, keepdim=True) <= _LARGEST_FEATURE
        embedded = self.projector(torch.where(finite, picked, self.zero))
        # a length of NaN or inf: so is an entry, or its square
        usable = (torch.linalg.vector_norm(embedded.detach(), dim=1, keepdim=True) < torch.inf) & finite
        embedded = F.normalize(torch.where(usable, embedded, self.zero), dim=1)
        return embedded.view(*valid.shape, -1), valid & usable.view_as(valid)

    def _mean_over_ranks(self, values: Tensor, num_positives: Tensor) -> Tensor:
        """Mean of each row of ``values`` (terms, A) over anchors with a positive, weighted; 0 at all others.

        The sum of this rank is divided by the mean number per rank, so that the mean over ranks, which DistributedData
        Parallel takes of the gradients, is the mean over all anchors.
        """
        count = num_positives.count_nonzero(1)
        if world_size() > 1:
            count = gather_ranks(count).float().mean(0)
        scale = self.loss_weight * self.weight_factor * self.temperature / self.base_temperature
        return torch.addcdiv(self.zero, values.sum(1), count.clamp(min=1 / world_size()), value=scale)
