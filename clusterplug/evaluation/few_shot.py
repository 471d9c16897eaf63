# SPDX-License-Identifier: Apache-2.0
"""Few-shot accuracy over many episodes that are drawn and classified in batches: mean and 95 % interval."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_finite, check_points
from clusterplug.functional import nearest_center
from clusterplug.registry import METRICS

Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]


class EpisodeAccuracy(NamedTuple):
    """Accuracy over episodes.

    Attributes:
        mean: Mean accuracy over the episodes, 0 to 1.
        interval: Half width of the 95 % interval of the mean, 1.96 s / sqrt(episodes); 0 for one episode.
        accuracies: (episodes,) float64.
    """

    mean: float
    interval: float
    accuracies: Tensor


class Episodes(NamedTuple):
    """A batch of E episodes as indices of the rows that they were drawn from.

    Attributes:
        classes: (E, ways) int64 value of the label of each way.
        support: (E, sum of shots) int64 rows, way by way.
        support_labels: (E, sum of shots) int64 way of each row.
        queries: (E, sum of queries) int64 rows, way by way; none is in the support.
        query_labels: (E, sum of queries) int64.
    """

    classes: Tensor
    support: Tensor
    support_labels: Tensor
    queries: Tensor
    query_labels: Tensor


@METRICS.register_module()
class FewShotEpisodes(BaseMetric):
    r"""Mean accuracy of few-shot classification over random episodes, with its 95 % interval.

    An episode draws ``ways`` classes, ``shots`` labeled and ``queries`` unlabeled rows of each, without replacement.
    Episodes are drawn, and given to the classifier, many at once:

    .. math:: \bar a \pm 1.96 \, s / \sqrt{E}.

    Call it with features and labels, or use it as a metric of a Runner, where every data sample has ``feature`` (D,)
    (or ``feats``) and ``label`` (or ``gt_label``).

    Args:
        ways: Classes of an episode.
        shots: Labeled rows of each class: an int, or one for each way.
        queries: Rows to classify of each class: an int, or one for each way (uneven queries).
        episodes: Number of episodes.
        classifier: ``'centroid'`` (the nearest class mean), or a function ``(support (E, S, D), labels (E, S),
            queries (E, Q, D))`` that returns ways (E, Q) or scores (E, Q, ways).
        batch_size: Episodes at once.
        seed: Of the draws; two calls with the same seed and data see the same episodes.
        collect_device: Where results of ranks are gathered.
        prefix: Of the names.
        **options: Further arguments of mmengine's ``BaseMetric``.

    Raises:
        ValueError: Fewer classes than ``ways``, with at least shots + queries rows each; features that are not
            finite; a classifier that returns another shape.

    Example:
        >>> x = torch.eye(5).repeat_interleave(20, 0) + 0.01 * torch.arange(100.0)[:, None] / 100
        >>> FewShotEpisodes(ways=5, shots=1, queries=15, episodes=100)(x, torch.arange(5).repeat_interleave(20)).mean
        1.0
    """

    default_prefix = 'few_shot'

    def __init__(
        self,
        ways: int = 5,
        shots: int | Sequence[int] = 1,
        queries: int | Sequence[int] = 15,
        episodes: int = 10_000,
        classifier: str | Classifier = 'centroid',
        batch_size: int = 256,
        seed: int = 0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        **options,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix, **options)
        self.ways = check_count(ways, 'ways', 2)
        self.shots, self.queries = _each_way(shots, 'shots', self.ways), _each_way(queries, 'queries', self.ways)
        self.episodes, self.batch_size = check_count(episodes, 'episodes', 1), check_count(batch_size, 'batch_size', 1)
        self.seed = check_count(seed, 'seed')
        if not callable(classifier):
            check_choice(classifier, 'classifier', ['centroid'], ' or a function')
        self.classifier = nearest_class_mean if classifier == 'centroid' else classifier

    def __call__(self, features: Tensor, labels: Tensor) -> EpisodeAccuracy:
        """Return the accuracy over the episodes drawn from ``features`` (N, D) with ``labels`` (N,); -1 = ignored."""
        check_points(features, 'features')
        labels = torch.as_tensor(labels, device=features.device)
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f'features must be (N, D) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}'
            )
        check_finite(features, 'features')
        generator = torch.Generator().manual_seed(self.seed)
        members, sizes, values = _members(labels.cpu(), max(s + q for s, q in zip(self.shots, self.queries)), self.ways)
        found = []
        for start in range(0, self.episodes, self.batch_size):
            number = min(self.batch_size, self.episodes - start)
            drawn = self._draw(number, members, sizes, values, generator)
            found.append(self._classify(features, drawn))
        accuracies = torch.cat(found)
        spread = float(accuracies.std()) if len(accuracies) > 1 else 0.0
        return EpisodeAccuracy(float(accuracies.mean()), 1.96 * spread / math.sqrt(len(accuracies)), accuracies)

    def draw(self, labels: Tensor, number: int, generator: torch.Generator | None = None) -> Episodes:
        """Return ``number`` episodes as indices of rows of ``labels`` (N,)."""
        needed = max(s + q for s, q in zip(self.shots, self.queries))
        generator = generator or torch.Generator().manual_seed(self.seed)
        members = _members(torch.as_tensor(labels).cpu(), needed, self.ways)
        return self._draw(check_count(number, 'number', 1), *members, generator)

    def _draw(self, number: int, members: Tensor, sizes: Tensor, values: Tensor, generator) -> Episodes:
        classes = torch.rand(number, len(values), generator=generator).topk(self.ways, dim=1).indices
        needed = max(s + q for s, q in zip(self.shots, self.queries))
        keys = torch.rand(number, self.ways, members.shape[1], generator=generator)
        # the padding is behind everything that is drawn
        keys = keys.masked_fill(torch.arange(members.shape[1]) >= sizes[classes][..., None], -1.0)
        rows = members[classes].gather(2, keys.topk(needed, dim=2).indices)
        support = [rows[:, way, :shots] for way, shots in enumerate(self.shots)]
        queries = [rows[:, way, s : s + q] for way, (s, q) in enumerate(zip(self.shots, self.queries))]
        ways = torch.arange(self.ways)
        support_labels = ways.repeat_interleave(torch.tensor(self.shots)).expand(number, -1)
        query_labels = ways.repeat_interleave(torch.tensor(self.queries)).expand(number, -1)
        return Episodes(values[classes], torch.cat(support, 1), support_labels, torch.cat(queries, 1), query_labels)

    @torch.no_grad()
    def _classify(self, features: Tensor, drawn: Episodes) -> Tensor:
        device = features.device
        support, queries = features[drawn.support.to(device)], features[drawn.queries.to(device)]
        answer = self.classifier(support, drawn.support_labels.to(device), queries)
        shape = tuple(drawn.query_labels.shape)
        if tuple(answer.shape) == (*shape, self.ways) and answer.is_floating_point():
            answer = answer.argmax(-1)
        if tuple(answer.shape) != shape or answer.is_floating_point():
            raise ValueError(
                f'classifier must return integer ways {shape} or scores {(*shape, self.ways)}, got '
                f'{tuple(answer.shape)} of {answer.dtype}'
            )
        return (answer.cpu() == drawn.query_labels).double().mean(1)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep feature and label of each sample."""
        for sample in data_samples:
            feature = sample.get('feature', sample.get('feats'))
            label = sample.get('label', sample.get('gt_label'))
            if feature is None or label is None:
                raise ValueError(f'a data sample needs feature (D,) and label, got {sorted(sample)}')
            feature = feature[-1] if isinstance(feature, tuple | list) else feature
            self.results.append((feature.detach().float().cpu().reshape(-1), int(torch.as_tensor(label).reshape(()))))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Mean and half width of the interval, in percent."""
        features, labels = zip(*results, strict=True)
        found = self(torch.stack(features), torch.tensor(labels))
        return {'accuracy': 100 * found.mean, 'ci95': 100 * found.interval}


def nearest_class_mean(support: Tensor, support_labels: Tensor, queries: Tensor) -> Tensor:
    """Return the way of the nearest mean of the support, (E, Q) int64.

    Args:
        support: (E, S, D) labeled rows. support_labels: (E, S) way of each, every way at least once.
        queries: (E, Q, D).

    Example:
        >>> s, q = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[[1.0], [3.0]]])
        >>> nearest_class_mean(s, torch.tensor([[0, 1]]), q)
        tensor([[0, 1]])
    """
    member = torch.nn.functional.one_hot(support_labels).to(support.dtype)
    means = member.mT @ support / member.sum(1)[..., None]
    return nearest_center(queries, means)[0]


def _each_way(value, name: str, ways: int) -> list[int]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != ways:
            raise ValueError(f'{name} must be one int or one for each of the {ways} ways, got {len(value)} numbers')
        return [check_count(each, f'each of {name}', 1) for each in value]
    return [check_count(value, name, 1)] * ways


def _members(labels: Tensor, needed: int, ways: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each class (C, longest), how many they are, and the label of each class that has enough rows."""
    if labels.is_floating_point() or labels.dim() != 1:
        raise TypeError(f'labels must be integers (N,), got {labels.dtype} of shape {tuple(labels.shape)}')
    values, sizes = torch.unique(labels[labels >= 0], return_counts=True)
    enough = sizes >= needed
    if int(enough.sum()) < ways:
        raise ValueError(
            f'an episode needs {ways} classes with at least {needed} rows (shots + queries) each, got '
            f'{int(enough.sum())} such classes; ask for fewer ways, shots or queries'
        )
    values, sizes = values[enough], sizes[enough]
    order = torch.argsort(labels, stable=True)
    starts = torch.searchsorted(labels[order].contiguous(), values)
    columns = torch.arange(int(sizes.max())).clamp(max=sizes[:, None] - 1)
    return order[starts[:, None] + columns], sizes, values
