# SPDX-License-Identifier: Apache-2.0
"""Search of arguments for novel class discovery without a label of a novel class: known classes are hidden in turn."""

import itertools
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from clusterplug.core.checks import check_choice, check_count
from clusterplug.estimators._arrays import check_parameter, partial_labels
from clusterplug.estimators._base import BaseEstimator
from clusterplug.functional import clustering_accuracy, normalized_mutual_info

SCORES = {'accuracy': clustering_accuracy, 'nmi': normalized_mutual_info}


class HiddenClassCV(BaseEstimator):
    """Random or full search over arguments of an estimator of novel classes, in scikit-learn's form.

    The known classes are split into folds. In each fold its classes are unlabeled for the estimator, next to the
    samples that really are; ``n_clusters`` is set to the number of hidden classes plus its own value, and the clusters
    of the hidden samples are compared with their labels. Labels of novel classes are never needed.

    Args:
        estimator: An estimator with ``fit(X, y)`` (y = -1 unlabeled), ``n_clusters`` (a number) and ``labels_``.
        param_distributions: Argument -> list of values, or an object with ``rvs(random_state=)`` (scipy.stats).
        n_iter: Draws of arguments; None = all combinations (lists only).
        n_folds: At most the number of known classes; each fold leaves at least one class known.
        scoring: ``'accuracy'`` (best matching) or ``'nmi'``.
        refit: Fit the best arguments to all samples at the end.
        random_state: None or an int, of folds and draws.
        verbose: 1 prints a line for each set of arguments.

    Attributes:
        best_params_, best_score_, best_index_. cv_results_: ``params``, ``param_<name>``, ``mean_test_score``,
            ``std_test_score``, ``rank_test_score``, ``split<i>_test_score``. best_estimator_: with ``refit``. folds_:
            classes of each.

    Raises:
        ValueError: Fewer than two known classes, folds that leave none known, arguments the estimator does not have.

    Source: Troisemaine et al., arXiv 2311.05440, section on tuning; official code ColinTr/PracticalNCD (MIT).
    **Differs from the authors' code**: scikit-learn's interface instead of Optuna scripts.

    Example:
        >>> from clusterplug.estimators import NovelClassKMeans
        >>> X = np.repeat(np.eye(6) * 9, 5, axis=0) + np.random.default_rng(0).normal(size=(30, 6))
        >>> y = np.repeat([0, 1, 2, 3, -1, -1], 5)
        >>> search = HiddenClassCV(NovelClassKMeans(2, random_state=0), {'power': [1, 2]}, n_iter=None, n_folds=2)
        >>> search.fit(X, y).best_score_ > 0.7
        True
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Mapping[str, Any],
        *,
        n_iter: int | None = 10,
        n_folds: int = 4,
        scoring: str = 'accuracy',
        refit: bool = True,
        random_state: int | None = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.param_distributions = param_distributions
        self.n_iter = n_iter
        self.n_folds = n_folds
        self.scoring = scoring
        self.refit = refit
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> 'HiddenClassCV':
        """Search with the known classes of ``y`` (N,), -1 = unlabeled."""
        check_parameter(check_choice, self.scoring, 'scoring', SCORES)
        check_parameter(check_count, self.n_folds, 'n_folds', 2)
        if y is None:
            raise ValueError('y must hold the known classes and -1 elsewhere, got None; requires y to be passed')
        labels = partial_labels(y).cpu().numpy()
        known = np.unique(labels[labels >= 0])
        if len(known) < 2:
            raise ValueError(f'y must hold at least 2 known classes to hide one at a time, got {len(known)}')
        if self.n_folds > len(known):
            raise ValueError(f'n_folds must be at most the number of known classes, {len(known)}, got {self.n_folds}')
        if not isinstance(getattr(self.estimator, 'n_clusters', None), numbers.Integral):
            raise ValueError('estimator must have a number as n_clusters, since folds add their hidden classes to it')
        random = np.random.default_rng(self.random_state)
        self.folds_ = [np.sort(part) for part in np.array_split(random.permutation(known), self.n_folds)]
        candidates = self._candidates(random)
        table = np.array([[self._score(X, labels, fold, each) for fold in self.folds_] for each in candidates])
        self._record(candidates, table)
        if self.refit:
            self.best_estimator_ = self._make(self.best_params_).fit(X, y)
        return self

    def predict(self, X: Any) -> Any:
        """Return what the refitted estimator predicts."""
        if not hasattr(self, 'best_estimator_'):
            raise ValueError('predict needs refit=True and a call of fit')
        return self.best_estimator_.predict(X)

    def _candidates(self, random: np.random.Generator) -> list[dict]:
        space = dict(self.param_distributions)
        unknown = sorted(set(space) - set(self.estimator.get_params(deep=False)))
        if unknown or not space:
            raise ValueError(f'param_distributions must name arguments of the estimator, got {unknown or space}')
        empty = [name for name, value in space.items() if not hasattr(value, 'rvs') and not len(value)]
        if empty:
            raise ValueError(
                f'param_distributions must hold at least one value for each argument, got none for {empty}'
            )
        if self.n_iter is None:
            lists = [value for value in space.values() if isinstance(value, list | tuple | np.ndarray)]
            if len(lists) < len(space):
                raise ValueError('n_iter must be a number where param_distributions holds distributions')
            return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]
        draws = []
        for _ in range(check_parameter(check_count, self.n_iter, 'n_iter', 1)):
            draw = {}
            for name, value in space.items():
                if hasattr(value, 'rvs'):
                    found = value.rvs(random_state=int(random.integers(2**31)))
                else:
                    found = value[int(random.integers(len(value)))]
                draw[name] = found.item() if isinstance(found, np.generic) else found
            draws.append(draw)
        return draws

    def _make(self, params: dict, **more: Any) -> Any:
        given = self.estimator.get_params(deep=False)
        return type(self.estimator)(**{**given, **params, **more})

    def _score(self, X: Any, labels: np.ndarray, fold: np.ndarray, params: dict) -> float:
        hidden = np.isin(labels, fold)
        shown = np.where(hidden, -1, labels)
        extra = int(params.get('n_clusters', self.estimator.n_clusters)) if (labels < 0).any() else 0
        model = self._make(params, n_clusters=len(fold) + extra).fit(X, shown)
        found = torch.as_tensor(np.asarray(torch.as_tensor(model.labels_).cpu())[hidden])
        return SCORES[self.scoring](torch.from_numpy(labels[hidden]), found)

    def _record(self, candidates: list[dict], table: np.ndarray) -> None:
        mean = table.mean(1)
        order = np.argsort(-mean, kind='stable')
        rank = np.empty(len(mean), dtype=np.int64)
        rank[order] = np.arange(1, len(mean) + 1)
        splits = {f'split{number}_test_score': table[:, number] for number in range(table.shape[1])}
        for name in self.param_distributions:
            column = splits[f'param_{name}'] = np.empty(len(candidates), dtype=object)
            for number, each in enumerate(candidates):  # a value may be a list
                column[number] = each[name]
        self.cv_results_ = {
            'params': candidates, 'mean_test_score': mean, 'std_test_score': table.std(1), 'rank_test_score': rank,
            **splits,
        }  # fmt: skip
        self.best_index_ = int(order[0])
        self.best_params_, self.best_score_ = candidates[self.best_index_], float(mean[self.best_index_])
        if self.verbose:
            for params, score in zip(candidates, mean, strict=True):
                print(f'HiddenClassCV: {score:.4f} {params}', flush=True)
