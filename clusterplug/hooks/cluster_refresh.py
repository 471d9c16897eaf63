# SPDX-License-Identifier: Apache-2.0
"""Recompute clusters of the whole training set every few epochs: for labels by sample, prototypes, and batches."""

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.dist import broadcast, get_comm_device
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.datasets.indexed_concat import IndexedConcatDataset
from clusterplug.hooks._clusters import build_estimator, centers_of, fit_copy, matched_ids
from clusterplug.hooks.value_schedule import attribute_of
from clusterplug.memory import SampleTable
from clusterplug.registry import DATASETS, HOOKS


@HOOKS.register_module()
class ClusterRefreshHook(Hook):
    """Embed the data set, cluster it, keep the ids of clusters that stay, and write them where the model reads them.

    Before an epoch: (1) every rank embeds its share of the samples, in evaluation mode and without gradient; (2) the
    estimator is fitted to all of them on the first rank; (3) the new ids are matched to the old ones, so that most
    samples keep theirs (Hungarian method on the overlap; where there are only prototypes, on their cosines); (4) the
    labels go into a :class:`~clusterplug.memory.SampleTable` of the model, the centers into its prototypes, the labels
    to the batch sampler. All of these are in the checkpoints, and which epochs refresh follows from their number: a
    resumed run goes on as if it had not stopped, where the data set that is embedded draws nothing at random.

    Args:
        estimator: What clusters: a dict such as ``dict(type='KMeans', n_clusters=64)`` of
            :mod:`clusterplug.estimators`, or any object with ``fit`` and ``labels_``, scikit-learn's too; or a list,
            one for each head. Its ``random_state``, where it has one that is None, is set from ``seed`` and the epoch.
        table: Dotted path from the model to a SampleTable; None: none.
        column: Column for the labels, one for each estimator.
        prototypes: Dotted path to a parameter or buffer (n_clusters, D) that takes the centers, one for each estimator;
            None: none.
        interval: Epochs (iterations with ``by_epoch=False``) between two refreshes.
        begin: The first one.
        by_epoch: Count epochs; False: iterations.
        features: What embeds: ``'tensor'``: the model called with ``mode='tensor'``; the name of another method; or a
            function ``(model, data) -> (B, D)``. ``data`` has gone through the model's ``data_preprocessor``.
        dataloader: ``dict(dataset=..., batch_size=..., num_workers=..., collate_fn=...)``; default: the samples of the
            training loader, through their own pipeline.
        normalize: Cluster embeddings of unit length, and write centers of unit length.
        match: Keep old ids; False: take the estimator's.
        sampler: Give the labels of the first estimator to the training loader's batch sampler (``set_labels``).
        seed: Seed of the estimators.

    Raises:
        ValueError: Nothing to write to, a path that the model does not have, a table or prototypes of another size;
            with ``table`` samples whose ``sample_idx`` is not their row, as those of mmengine's ``ConcatDataset`` (use
            :class:`~clusterplug.datasets.indexed_concat.IndexedConcatDataset`): a loss would read rows of others.

    Samples whose embedding is not finite get label -1 and are ignored; so do those that the estimator calls noise, and
    those in whose place the data set gave another one.

    Source: DeepCluster-v2: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    NeurIPS 2020, arXiv 2006.09882, appendix; official code facebookresearch/swav (CC BY-NC), written from the paper.

    Differs from the authors' code: theirs clusters embeddings stored during the last epoch, under random views and
    weights of different ages, and numbers clusters at random each time.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ClusterRefreshHook', estimator=dict(type='KMeans', n_clusters=64),
        table='table')]``
    """

    priority = 'ABOVE_NORMAL'  # before the hooks that look at what it writes

    def __init__(
        self,
        estimator: Any,
        table: str | None = None,
        column: str | Sequence[str] = 'label',
        prototypes: str | Sequence[str] | None = None,
        interval: int = 1,
        begin: int = 0,
        by_epoch: bool = True,
        features: str | Callable = 'tensor',
        dataloader: dict | None = None,
        normalize: bool = True,
        match: bool = True,
        sampler: bool = False,
        seed: int = 0,
    ):
        self.estimators = [build_estimator(each) for each in _as_list(estimator)]
        heads = len(self.estimators)
        self.table, self.columns = table, _as_list(column)
        self.prototypes = [None] * heads if prototypes is None else _as_list(prototypes)
        if table is None and prototypes is None and not sampler:
            raise ValueError('table, prototypes or sampler must be given, or the clusters would be written nowhere')
        for name, values in (('column', self.columns if table else [None] * heads), ('prototypes', self.prototypes)):
            if len(values) != heads:
                raise ValueError(f'{name} must be one for each of the {heads} estimators, got {len(values)}')
        self.interval, self.begin = check_count(interval, 'interval', 1), check_count(begin, 'begin')
        self.by_epoch, self.features, self.dataloader = by_epoch, features, dataloader
        self.normalize, self.match, self.sampler = normalize, match, sampler
        self.seed, self._saved = check_count(seed, 'seed'), None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the labels of the batch sampler, which no module holds."""
        if self.sampler:
            checkpoint['cluster_labels'] = torch.as_tensor(_batch_sampler(runner).labels)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep them in a resumed run; other weights (``load_from``) are no reason to take their labels."""
        self._saved = checkpoint.get('cluster_labels') if runner._resume else None

    def before_train(self, runner) -> None:
        """Check the targets, and give a resumed run's labels to the batch sampler."""
        model = _unwrapped(runner.model)
        targets = [find_target(model, path, type(self).__name__) for path in self.prototypes if path]
        if self.table:
            table = self._table(model)
            for column in self.columns:
                table[column]
        for target in targets:
            if not isinstance(target, Tensor) or target.dim() != 2:
                raise ValueError(f'prototypes must lead to a tensor (n_clusters, D), got {type(target).__name__}')
        sampler = _batch_sampler(runner) if self.sampler else None
        if sampler is not None and self._saved is not None:
            sampler.set_labels(self._saved)

    def before_train_epoch(self, runner) -> None:
        """Refresh where it is the turn of this epoch."""
        if self.by_epoch and self._is_due(runner.epoch):
            self.refresh(runner, runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Refresh where it is the turn of this iteration."""
        if not self.by_epoch and self._is_due(runner.iter):
            self.refresh(runner, runner.iter)

    def _is_due(self, number: int) -> bool:
        return number >= self.begin and (number - self.begin) % self.interval == 0

    def refresh(self, runner, number: int = 0) -> list[Tensor]:
        """Embed, cluster, match and write now; return the labels of each estimator, (num_samples,) each."""
        model = _unwrapped(runner.model)
        x = self._embed(runner, model)
        finite = x.isfinite().all(1)
        if not bool(finite.all()):
            warnings.warn(
                f'ClusterRefreshHook: {int((~finite).sum())} of {len(x)} embeddings are not finite, or of other '
                f'samples than asked; they get label -1',
                stacklevel=2,
            )
        rows = F.normalize(x[finite], dim=1) if self.normalize else x[finite]
        found = []
        for head, estimator in enumerate(self.estimators):
            labels, centers = self._cluster(estimator, rows, finite, number * len(self.estimators) + head)
            found.append(self._write(runner, model, head, labels, centers))
        if self.sampler:
            _batch_sampler(runner).set_labels(found[0])
        return found

    def _cluster(self, estimator: Any, rows: Tensor, finite: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Labels of all samples and centers (K, D): fitted on the first rank, the same on all."""
        labels, sizes = torch.full((len(finite),), -1), torch.zeros(2, dtype=torch.int64)
        centers = rows.new_zeros(0, rows.shape[1])
        if rank() == 0:
            fitted = fit_copy(estimator, rows, self.seed + draw)
            labels[finite] = torch.as_tensor(fitted.labels_).long().cpu()
            centers = centers_of(fitted, rows, labels[finite])
            centers = F.normalize(centers, dim=1) if self.normalize else centers
            sizes = torch.tensor(centers.shape)
        if world_size() > 1:
            broadcast(sizes)
            centers = centers if rank() == 0 else rows.new_zeros(*sizes.tolist())
            broadcast(labels)
            broadcast(centers)
        return labels, centers

    def _write(self, runner, model, head: int, labels: Tensor, centers: Tensor) -> Tensor:
        path, column = self.prototypes[head], self.columns[head] if self.table else None
        target = find_target(model, path, type(self).__name__) if path else None
        if target is not None and target.shape != centers.shape:
            raise ValueError(
                f'prototypes {path!r} must have the shape of the centers, {tuple(centers.shape)}, got '
                f'{tuple(target.shape)}; give the head as many prototypes as the estimator has clusters'
            )
        table = self._table(model) if self.table else None
        old = None
        if table is not None:
            if len(table) != len(labels):
                raise ValueError(
                    f'table {self.table!r} must have one row a sample, {len(labels)}, got {len(table)} rows'
                )
            old = table[column].cpu().where(table.written.cpu(), -1)
        if self.match:
            ids = matched_ids(labels, centers, old, target)
            labels = torch.where(labels >= 0, ids[labels.clamp(min=0)], labels)
            if target is not None:
                centers = torch.empty_like(centers).index_copy_(0, ids, centers)
        changed = None if old is None or not bool((old >= 0).any()) else float((old != labels).float().mean())
        if table is not None:
            table.write(torch.arange(len(labels)), **{column: labels})
        if target is not None:
            with torch.no_grad():
                target.copy_(centers)
        text = '' if changed is None else f', {changed:.1%} of the samples have another label than before'
        runner.logger.info(f'ClusterRefreshHook: {len(labels)} samples in {len(centers)} clusters{text}')
        return labels

    def _table(self, model: torch.nn.Module) -> SampleTable:
        table = find_target(model, self.table, type(self).__name__)
        if not isinstance(table, SampleTable):
            raise ValueError(f'table must lead to a SampleTable, got {type(table).__name__} at {self.table!r}')
        return table

    @torch.no_grad()
    def _embed(self, runner, model: torch.nn.Module) -> Tensor:
        """Embeddings (N, D) of all samples on the CPU, in fp32, equal on all ranks."""
        loader, total = self._loader(runner)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            # the order of workers and of what they draw must not move the random numbers of the training
            with torch.random.fork_rng(devices=[]):
                parts, row = [], rank()
                for data in loader:
                    others = _other_samples(data, row, loader.dataset.dataset) if self.table else []
                    x = self._features(model, data).float().cpu()
                    row += len(x) * world_size()
                    if others:  # no label
                        x = x.index_fill(0, torch.tensor(others), torch.nan)
                    parts.append(x)
        finally:
            for module, mode in modes.items():
                module.training = mode
        own = torch.cat(parts) if parts else torch.zeros(0, 1)
        if world_size() == 1:
            return own
        most, device = -(-total // world_size()), get_comm_device()  # NCCL takes nothing from the CPU
        width = int(gather_ranks(torch.tensor(own.shape[1] if parts else 0, device=device)).max())
        padded = torch.zeros(most, width, device=device)
        padded[: len(own)] = own.to(device) if parts else 0.0
        # sample i is the (i // ranks)-th of rank i % ranks
        return gather_ranks(padded).transpose(0, 1).flatten(0, 1)[:total].cpu()

    def _features(self, model: torch.nn.Module, data: Any) -> Tensor:
        data = model.data_preprocessor(data, False) if hasattr(model, 'data_preprocessor') else data
        if callable(self.features):
            found = self.features(model, data)
        else:
            call = model if self.features == 'tensor' else getattr(model, self.features, None)
            if call is None:
                raise ValueError(f'features must be a method of {type(model).__name__}, got {self.features!r}')
            mode = dict(mode='tensor') if self.features == 'tensor' else {}
            found = call(**data, **mode) if isinstance(data, dict) else call(*_as_list(data), **mode)
        while isinstance(found, (tuple, list)) and len(found) == 1:
            found = found[0]
        if not isinstance(found, Tensor) or found.dim() != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f'features must give one tensor (B, D) for a batch, got {got}; pass a function as features'
            )
        return found

    def _loader(self, runner) -> tuple[DataLoader, int]:
        options = dict(self.dataloader or {})
        train = runner.train_dataloader if 'dataset' not in options else None
        dataset = options.pop('dataset', None) or train.dataset
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        collate = options.pop('collate_fn', None if train is None else train.collate_fn)
        if collate is None or isinstance(collate, (str, dict)):
            from mmengine.registry import FUNCTIONS

            name = collate.get('type') if isinstance(collate, dict) else collate or 'pseudo_collate'
            collate = FUNCTIONS.get(name)
        size = options.pop('batch_size', 64)
        share = Subset(dataset, range(rank(), len(dataset), world_size()))
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(share, size, collate_fn=collate, generator=generator, **options), len(dataset)


def _other_samples(data: Any, row: int, dataset: Any) -> list[int]:
    """Positions in a batch that begins with ``row`` of samples that say that they are of another row.

    A data set of mmengine draws another sample where its pipeline gives None; data sets that put others together say so
    of every sample, which is an error.
    """
    samples = data.get('data_samples') if isinstance(data, dict) else None
    if not isinstance(samples, (list, tuple)):
        return []
    # of a data set that comes several times the first rows are read
    period = len(dataset.dataset) if isinstance(dataset, RepeatDataset) else len(dataset)
    found = []
    for place, sample in enumerate(samples):
        said, wanted = sample.get('sample_idx') if hasattr(sample, 'get') else None, row + place * world_size()
        if not isinstance(said, (Integral, Tensor)) or int(said) == wanted % period:
            continue
        if isinstance(dataset, (ConcatDataset, ClassBalancedDataset)) and not isinstance(dataset, IndexedConcatDataset):
            raise ValueError(
                f'ClusterRefreshHook: the sample in row {wanted} of the data set has sample_idx {int(said)}, so that '
                f'the loss would read the label of another sample; {type(dataset).__name__} leaves the numbers of its '
                f"parts: use dict(type='clusterplug.IndexedConcatDataset', datasets=[...]), or no data set that draws "
                f'samples again'
            )
        found.append(place)
    return found


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model


def find_target(model: torch.nn.Module, path: str, hook: str) -> Any:
    """Return what is at the dotted path from the model, or raise a ValueError that names the hook."""
    found = model
    for part in path.split('.'):
        if not hasattr(found, part):
            raise ValueError(
                f'{hook} found no {path!r} in {type(model).__name__}: {type(found).__name__} has no {part!r}'
            )
        found = attribute_of(found, part)
    return found


def _batch_sampler(runner) -> Any:
    sampler = runner.train_dataloader.batch_sampler
    if hasattr(sampler, 'set_labels'):
        return sampler
    raise ValueError(
        f'sampler=True needs a batch sampler with set_labels, as ClusterDisjointBatchSampler has, got '
        f'{type(sampler).__name__}'
    )
