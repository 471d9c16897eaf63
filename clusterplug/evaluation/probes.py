# SPDX-License-Identifier: Apache-2.0
"""What frozen features tell of classes: a linear classifier, and nearest neighbors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_number, check_points
from clusterplug.core.numerics import recordable, recording
from clusterplug.registry import METRICS


class Probe(NamedTuple):
    """Results on test samples.

    Attributes:
        accuracy: share that is right.
        class_mean: mean over the classes with a test sample of the share that is right.
        predictions: (M,) int64.
    """

    accuracy: float
    class_mean: float
    predictions: Tensor


@recording()
def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    penalty: float = 1e-3,
    max_iter: int = 200,
) -> Probe:
    r"""Fit multinomial logistic regression on frozen features, to its optimum, and test it.

    .. math:: \min_{W, b} \frac{1}{N} \sum_n -\log \mathrm{softmax}(W x_n + b)_{y_n}
              + \frac{\lambda}{2} \lVert W \rVert^2

    on features scaled to mean 0 and deviation 1 of the training samples. Convex: L-BFGS from 0, nothing is random.

    Args:
        train_x: (N, D) floating.
        train_y: (N,) integer classes from 0.
        test_x: (M, D).
        test_y: (M,); a class that no training sample has is never right.
        penalty: lambda.
        max_iter: at most so many iterations.

    Returns:
        :class:`Probe`.

    Raises:
        ValueError, TypeError: shapes that do not fit, no sample, negative classes, NaN or inf.

    Source: the linear evaluation of Caron et al., NeurIPS 2020. **Differs from the authors' code**: theirs trains for
    100 epochs on augmented images by SGD; this one sees each image once and is solved exactly, in seconds.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 1])).accuracy
        1.0
    """
    train_x, train_y, test_x, test_y = _checked(train_x, train_y, test_x, test_y)
    penalty, max_iter = check_number(penalty, 'penalty', 0), check_count(max_iter, 'max_iter', 1)
    mean, scale = train_x.mean(0), train_x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-12 * train_x.abs().amax(0).clamp(min=1e-30), scale, 1.0)
    train_x, test_x = (train_x - mean) / scale, (test_x - mean) / scale
    num_classes = int(train_y.max()) + 1
    weight = train_x.new_zeros(num_classes, train_x.shape[1], requires_grad=True)
    bias = train_x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=1e-6, line_search_fn='strong_wolfe', history_size=20
    )

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(train_x, weight, bias), train_y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return _result(F.linear(test_x, weight, bias).argmax(1), test_y)


@torch.no_grad()
def nearest_neighbor_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    num_neighbors: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 4096,
) -> Probe:
    r"""Classify by the nearest training features: each of the k votes with :math:`\exp(\cos / \tau)`.

    Args:
        train_x: (N, D) floating.
        train_y: (N,) integer classes from 0.
        test_x: (M, D).
        test_y: (M,).
        num_neighbors: k, at most N are used.
        temperature: tau; small: the nearest decides, large: all votes count the same.
        chunk_size: test samples that are compared at once.

    Returns:
        :class:`Probe`.

    Raises:
        ValueError, TypeError: as :func:`linear_probe`.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv
    1805.01978.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> nearest_neighbor_probe(x, torch.tensor([0, 1]), x + 0.1, torch.tensor([0, 1])).accuracy
        1.0
    """
    train_x, train_y, test_x, test_y = _checked(train_x, train_y, test_x, test_y)
    number = min(check_count(num_neighbors, 'num_neighbors', 1), len(train_x))
    temperature = check_number(temperature, 'temperature', above=0)
    chunk_size = check_count(chunk_size, 'chunk_size', 1)
    train_x, num_classes, found = F.normalize(train_x, dim=1), int(train_y.max()) + 1, []
    for part in F.normalize(test_x, dim=1).split(chunk_size):
        cosine, nearest = (part @ train_x.T).topk(number, dim=1)
        votes = ((cosine - cosine[:, :1]) / temperature).exp()
        found.append(votes.new_zeros(len(part), num_classes).scatter_add_(1, train_y[nearest], votes).argmax(1))
    return _result(torch.cat(found), test_y)


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    r"""Return :math:`\exp(-\sum_i p_i \log p_i)`, p = shares of the variance of features (N, D) by direction.

    1 = all on a line (collapsed), D = equal in all directions. NaN and infinity are refused (ValueError).

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007, on variances.

    Example:
        >>> round(effective_rank(torch.eye(4) - 0.25), 3)
        3.0
    """
    check_points(x)
    check_finite(x)
    x = x.double()
    x = x - x.mean(0)
    variance = torch.linalg.svdvals(x).square()
    share = variance / variance.sum().clamp(min=1e-300)
    return float(torch.special.entr(share).sum().exp())


class _ProbeMetric(BaseMetric):
    """Collects features and labels, splits them into samples to fit and to test, and probes."""

    default_prefix: str | None = None

    def __init__(
        self,
        field: str = 'features',
        train_ratio: float = 0.5,
        max_rows: int = 50_000,
        ignore_index: int | None = None,
        seed: int = 0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        self.field = field
        self.train_ratio = check_number(train_ratio, 'train_ratio', above=0)
        if self.train_ratio >= 1:
            raise ValueError(f'train_ratio must be below 1, as the rest is tested, got {train_ratio}')
        self.max_rows = check_count(max_rows, 'max_rows', 2)
        self.ignore_index, self.seed = ignore_index, check_count(seed, 'seed')

    def process(self, data_batch, data_samples) -> None:
        """Keep the features and labels of each sample, with its number among those of this rank."""
        for sample in data_samples:
            labels = sample.get('labels', sample.get('gt_label'))
            if self.field not in sample or labels is None:
                raise ValueError(
                    f'{type(self).__name__} needs {self.field} and labels (or gt_label) in each sample, got '
                    f'{sorted(sample)}; a MultiViewModel gives features and embeddings, the data set labels'
                )
            x = sample[self.field].detach().float().cpu()
            labels = torch.as_tensor(labels).reshape(-1).long().cpu()
            if len(labels) != len(x):
                raise ValueError(f'{self.field} must have one row a label, got {len(x)} rows for {len(labels)} labels')
            self.results.append((x, labels, sample.get('split')))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Fit on one part, test on the other."""
        return self._probe(*self._parts(results))

    def _parts(self, results: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        splits = {split for _, _, split in results}
        if splits <= {None}:
            # whole samples, so that points of a scan never lie in both parts; a single scan is cut up
            if len(results) == 1:
                x, labels, _ = results[0]
                order = torch.randperm(len(x), generator=generator)
                results = [(x[part], labels[part], None) for part in order.chunk(min(10, len(order)))]
            order = torch.randperm(len(results), generator=generator).tolist()
            fitted = set(order[: max(1, round(self.train_ratio * len(order)))])
            results = [(x, y, 'train' if n in fitted else 'test') for n, (x, y, _) in enumerate(results)]
        elif not {'train', 'test'} <= splits or len(splits) > 2:
            raise ValueError(f"split must be 'train' or 'test' in every sample, with both, got {splits}")
        found = []
        for split in ('train', 'test'):
            x = torch.cat([x for x, _, of in results if of == split] or [torch.zeros(0, 1)])
            y = torch.cat([y for _, y, of in results if of == split] or [torch.zeros(0, dtype=torch.int64)])
            known = torch.isfinite(x).all(1) & (y >= 0)
            if self.ignore_index is not None:
                known &= y != self.ignore_index
            rows = known.nonzero()[:, 0]
            if len(rows) == 0:
                raise ValueError(f'there are no labeled samples to {split} a probe; add scans or images, or labels')
            rows = rows[torch.randperm(len(rows), generator=generator)[: self.max_rows].sort().values]
            found += [x[rows], y[rows]]
        return tuple(found)

    def _probe(self, train_x, train_y, test_x, test_y) -> dict[str, float]:
        raise NotImplementedError


@METRICS.register_module()
class LinearProbe(_ProbeMetric):
    """:func:`linear_probe` during training: accuracy (percent), mean over classes, effective rank of the features.

    Samples of the validation loader whose ``split`` is ``'train'`` are fitted, those with ``'test'`` are tested;
    without ``split``, a part is drawn. Rows without a finite feature or with an ignored label are dropped.

    Args:
        field: What is probed: ``'features'`` of the backbone (as published) or ``'embeddings'`` of the head.
        train_ratio: Share of the samples that are fitted, where they have no ``split``.
        max_rows: At most so many rows of each part (points of scans), drawn at random.
        ignore_index: Label that is ignored, besides negative ones.
        seed: Of the draws.
        penalty: As of :func:`linear_probe`.
        collect_device: As in mmengine.
        prefix: As in mmengine. Defaults to ``'linear_probe'``.

    Example:
        ``val_evaluator = [dict(type='clusterplug.LinearProbe'), dict(type='clusterplug.NearestNeighborProbe')]``
    """

    default_prefix = 'linear_probe'

    def __init__(
        self,
        field: str = 'features',
        train_ratio: float = 0.5,
        max_rows: int = 50_000,
        ignore_index: int | None = None,
        seed: int = 0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        *,
        penalty: float = 1e-3,
    ):
        super().__init__(field, train_ratio, max_rows, ignore_index, seed, collect_device, prefix)
        self.penalty = check_number(penalty, 'penalty', 0)

    def _probe(self, train_x, train_y, test_x, test_y) -> dict[str, float]:
        found = linear_probe(train_x, train_y, test_x, test_y, penalty=self.penalty)
        rank = effective_rank(train_x[:5000])
        return {'accuracy': 100 * found.accuracy, 'class_mean': 100 * found.class_mean, 'effective_rank': rank}


@METRICS.register_module()
class NearestNeighborProbe(_ProbeMetric):
    """:func:`nearest_neighbor_probe` during training: accuracy (percent) and mean over classes.

    Args:
        field, train_ratio, max_rows, ignore_index, seed, collect_device, prefix: As of :class:`LinearProbe`.
        num_neighbors: k.
        temperature: Of the votes.

    Example:
        ``val_evaluator = dict(type='clusterplug.NearestNeighborProbe', field='embeddings')``
    """

    default_prefix = 'knn_probe'

    def __init__(
        self,
        field: str = 'features',
        train_ratio: float = 0.5,
        max_rows: int = 50_000,
        ignore_index: int | None = None,
        seed: int = 0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        *,
        num_neighbors: int = 20,
        temperature: float = 0.07,
    ):
        super().__init__(field, train_ratio, max_rows, ignore_index, seed, collect_device, prefix)
        self.num_neighbors = check_count(num_neighbors, 'num_neighbors', 1)
        self.temperature = check_number(temperature, 'temperature', above=0)

    def _probe(self, train_x, train_y, test_x, test_y) -> dict[str, float]:
        found = nearest_neighbor_probe(
            train_x, train_y, test_x, test_y, num_neighbors=self.num_neighbors, temperature=self.temperature
        )
        return {'accuracy': 100 * found.accuracy, 'class_mean': 100 * found.class_mean}


def _checked(train_x, train_y, test_x, test_y) -> list[Tensor]:
    checked = []
    for name, x, y in (('train', train_x, train_y), ('test', test_x, test_y)):
        check_points(x, f'{name}_x')
        if x.dim() != 2 or not isinstance(y, Tensor) or y.shape != x.shape[:1]:
            shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f'{name}_x must be (N, D) and {name}_y (N,), got {tuple(x.shape)} and {shape}')
        if y.is_floating_point() or y.dtype == torch.bool or bool((y < 0).any()):
            raise ValueError(f'{name}_y must hold integer classes from 0, got {y.dtype}, smallest {y.min().item()}')
        check_finite(x, f'{name}_x')
        checked += [x.detach().to(torch.promote_types(x.dtype, torch.float32)), recordable(y.long())]
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f'train_x and test_x must have one width, got {train_x.shape[1]} and {test_x.shape[1]}')
    return checked


def _result(predictions: Tensor, truth: Tensor) -> Probe:
    right = (predictions == truth).double()
    counts = torch.bincount(truth)
    hits = torch.bincount(truth, weights=right)
    seen = counts > 0
    return Probe(float(right.mean()), float((hits[seen] / counts[seen]).mean()), predictions)
