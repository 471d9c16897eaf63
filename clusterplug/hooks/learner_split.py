# SPDX-License-Identifier: Apache-2.0
"""Splits the last learner of a SubspaceLearnerHead when a score of the embedding stops to rise."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.distributed import gather_ranks
from clusterplug.functional import kmeans, pairwise_distances
from clusterplug.heads import SubspaceLearnerHead
from clusterplug.hooks.cluster_refresh import ClusterRefreshHook
from clusterplug.registry import HOOKS

__all__ = ['LearnerSplitHook', 'simplified_silhouette']

_KEY = 'learner_split'


def simplified_silhouette(x: Tensor, num_clusters: int) -> float:
    r"""Return how clearly rows belong to one of the clusters that k-means finds: 0 not at all, 1 without doubt.

    .. math:: s = \frac{1}{N} \sum_i \frac{d_{i2} - d_{i1}}{d_{i2}},

    with the distances of a row to the nearest and the second nearest center. It needs no labels.

    Args:
        x: (N, D). num_clusters: K, at least 2 and at most N.

    Example:
        >>> simplified_silhouette(torch.tensor([[0.0], [0.0], [5.0], [5.0]]), 2)
        1.0
    """
    centers = kmeans(x, num_clusters, init='kkz', num_iters=20).centers
    nearest = pairwise_distances(x, centers).sort(1).values[:, :2]
    second = nearest[:, 1]
    return float(torch.where(second > 0, (second - nearest[:, 0]) / torch.where(second > 0, second, 1.0), 0.0).mean())


@HOOKS.register_module()
class LearnerSplitHook(Hook):
    """Watch a score of the embedding; where it stands still for ``patience`` epochs, split the last learner.

    After an epoch the dimensions of the last learner with an importance above ``threshold`` stay (see
    :meth:`~clusterplug.heads.SubspaceLearnerHead.importance`), the others become a new learner with new weights, whose
    moments in the optimizer are reset. At least ``min_keep`` dimensions must stay, or the split is tried again after
    the next epoch; then the score has to reach a new best before another split. A
    :class:`~clusterplug.hooks.ClusterRefreshHook` in the same run gets as many clusters as there are learners.

    From ``finetune_begin`` on nothing is split any more, and a model that has ``finetune`` trains all slices together.
    Best score and counters are in the checkpoints, the partition in the head: a resumed run goes on alike.

    Args:
        num_clusters: Clusters of the score, such as the number of classes.
        head: Dotted path from the model to the head; None: the only one there is.
        monitor: ``'silhouette'``: :func:`simplified_silhouette` of the embeddings of the last ``num_rows`` training
            rows, which needs no labels; or the name of a validation metric, larger = better. A metric of the test data
            would let test labels shape the model.
        patience: Epochs without a new best before a split.
        min_delta: How much the score must exceed the best one to be a new best, at least 0. On the rows that it is
            computed from, an embedding gets clearer by some thousandths an epoch for as long as it is trained: with 0
            no such score ever stands still.
        threshold: Importance, 0 to 1, above which a dimension stays.
        min_size: Only a learner of more dimensions is split.
        min_keep: Fewest dimensions that must stay.
        finetune_begin: Epoch from which all slices train together; None: never.
        score: ``'taylor'`` or ``'absolute'`` importance.
        num_rows: Rows remembered for the score.

    Raises:
        ValueError: No head, or several; a validation metric that is not there.

    Source: Adiga, Dolz and Lombaert, IEEE JBHI 2022 (arXiv 2206.09068); official code
    adigasu/Dynamic_subspace_learners (MIT): patience 10, threshold 0.5, more than 10 dimensions, at least 5 kept.

    **Differs from the authors' code**: theirs decides by the NMI of the test set, where any gain counts; keeps all
    activations of an epoch; loses rows while it copies them; leaves the moments of Adam where they were.

    Example:
        ``custom_hooks = [dict(type='clusterplug.LearnerSplitHook', num_clusters=10)]``
    """

    priority = 'LOW'

    def __init__(
        self,
        num_clusters: int,
        head: str | None = None,
        monitor: str = 'silhouette',
        patience: int = 10,
        min_delta: float = 0.02,
        threshold: float = 0.5,
        min_size: int = 10,
        min_keep: int = 5,
        finetune_begin: int | None = None,
        score: str = 'taylor',
        num_rows: int = 2048,
    ):
        self.num_clusters = check_count(num_clusters, 'num_clusters', 2)
        self.head_path, self.monitor = head, monitor
        self.patience, self.min_size = check_count(patience, 'patience', 1), check_count(min_size, 'min_size', 1)
        self.min_delta = check_number(min_delta, 'min_delta', 0)
        self.threshold = check_number(threshold, 'threshold', 0, 1)
        self.min_keep, self.num_rows = check_count(min_keep, 'min_keep', 1), check_count(num_rows, 'num_rows', 2)
        self.finetune_begin = None if finetune_begin is None else check_count(finetune_begin, 'finetune_begin')
        self.score = check_choice(score, 'score', ['taylor', 'absolute'])
        self.state: dict[str, Any] = dict(best=None, best_epoch=-1, explore=False, rows=None, filled=0)
        self._metrics: dict[str, float] = {}
        self._handle = None

    def before_train(self, runner) -> None:
        """Find the head, begin to remember its embeddings, and bring everything to the state of a resumed run."""
        head = self._head(runner)
        if self.monitor == 'silhouette':
            self._handle = head.register_forward_hook(self._remember)
        self._set_clusters(runner, head)

    def after_train(self, runner) -> None:
        """Leave no trace in the model but its learners."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def before_train_epoch(self, runner) -> None:
        """Begin to train all slices together where it is time."""
        model = _unwrapped(runner.model)
        if self.finetune_begin is not None and hasattr(model, 'finetune'):
            model.finetune = runner.epoch >= self.finetune_begin

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keep the metrics of the validation."""
        self._metrics = dict(metrics or {})

    def after_train_epoch(self, runner) -> None:
        """Look at the score, and split where it stagnates."""
        head, epoch, state = self._head(runner), runner.epoch, self.state
        if self.finetune_begin is not None and epoch >= self.finetune_begin:
            head.reset_importance()
            return
        value = self._value(runner)
        runner.message_hub.update_scalar('train/learners', head.num_learners)
        if value is not None:
            runner.message_hub.update_scalar('train/learner_score', value)
            if state['best'] is None or value > state['best'] + self.min_delta:
                state.update(best=value, best_epoch=epoch, explore=True)
        if state['explore'] and epoch >= state['best_epoch'] + self.patience:
            self._split(runner, head)
        head.reset_importance()

    def _split(self, runner, head: SubspaceLearnerHead) -> None:
        last = head.num_learners - 1
        size = int((head.partition == last).sum())
        keep = (head.importance(kind=self.score) > self.threshold).nonzero().flatten()
        if size <= self.min_size or not self.min_keep <= len(keep) < size:
            return
        before = head.partition.clone()
        new = head.split(keep)
        rows = (head.partition != before).nonzero().flatten()
        for optimizer in _optimizers(runner.optim_wrapper):
            for parameter in (head.fc.weight, head.fc.bias):
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[rows] = 0
        self.state['explore'] = False
        self._set_clusters(runner, head)
        runner.logger.info(
            f'LearnerSplitHook: learner {last} keeps {len(keep)} of {size} dimensions, {len(rows)} become learner {new}'
        )

    def _value(self, runner) -> float | None:
        if self.monitor != 'silhouette':
            if self._metrics and self.monitor not in self._metrics:
                raise ValueError(f'monitor must be one of {sorted(self._metrics)}, got {self.monitor!r}')
            return self._metrics.get(self.monitor)
        if self.state['rows'] is None:
            return None
        rows = gather_ranks(self.state['rows'])
        filled = gather_ranks(torch.tensor(min(self.state['filled'], self.num_rows), device=rows.device)).tolist()
        rows = torch.cat([rows[r, :number] for r, number in enumerate(filled)])
        rows = rows[rows.isfinite().all(1)]
        return simplified_silhouette(rows, self.num_clusters) if len(rows) > self.num_clusters else None

    @torch.no_grad()
    def _remember(self, head: SubspaceLearnerHead, args: tuple, embedding: Tensor) -> None:
        if not head.training:
            return
        # all slices, also where only one of them is trained; not by a call, which would come back here
        embedding = head.forward(args[0].detach()).float()
        if self.state['rows'] is None:
            self.state['rows'] = embedding.new_zeros(self.num_rows, embedding.shape[1])
        at = (self.state['filled'] + torch.arange(len(embedding), device=embedding.device)) % self.num_rows
        self.state['rows'] = self.state['rows'].to(embedding.device)
        self.state['rows'][at[-self.num_rows :]] = embedding[-self.num_rows :]
        self.state['filled'] += len(embedding)

    def _set_clusters(self, runner, head: SubspaceLearnerHead) -> None:
        for hook in runner.hooks:
            if isinstance(hook, ClusterRefreshHook):
                for estimator in hook.estimators:
                    if hasattr(estimator, 'n_clusters'):
                        estimator.n_clusters = head.num_learners

    def _head(self, runner) -> SubspaceLearnerHead:
        model = _unwrapped(runner.model)
        named = {name: each for name, each in model.named_modules() if isinstance(each, SubspaceLearnerHead)}
        if self.head_path is not None and self.head_path in named:
            return named[self.head_path]
        if self.head_path is not None or len(named) != 1:
            raise ValueError(
                f'head must be the path of a SubspaceLearnerHead, got {self.head_path!r}; {type(model).__name__} has '
                f'{sorted(named) or "none"}'
            )
        return next(iter(named.values()))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put the state into the checkpoint."""
        checkpoint[_KEY] = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in self.state.items()
        }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take the state out of the checkpoint."""
        if _KEY in checkpoint:
            self.state.update(checkpoint[_KEY])


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model


def _optimizers(wrapper: Any) -> list:
    """The optimizers of a wrapper, or of a dict of wrappers."""
    if hasattr(wrapper, 'optimizer'):
        return [wrapper.optimizer]
    return [each.optimizer for _, each in wrapper.items()]
