# SPDX-License-Identifier: Apache-2.0
"""Baseline and method over seeds: mean, spread, and a paired test."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import nearest_name


class Comparison(NamedTuple):
    """One metric of a baseline and a method, over the same S seeds.

    Attributes:
        baseline: mean and standard deviation (S - 1) of the baseline.
        method: likewise.
        difference: mean and standard deviation of the paired differences.
        p_value: two-sided paired t-test of no difference; NaN for fewer than two seeds or without scipy.
    """

    baseline: tuple[float, float]
    method: tuple[float, float]
    difference: tuple[float, float]
    p_value: float


def compare(baseline: Sequence[float], method: Sequence[float]) -> Comparison:
    """Compare the values of two runs per seed.

    Raises:
        ValueError: not as many values of both, or none.

    Example:
        >>> compare([1.0, 2.0, 3.0], [2.0, 3.0, 4.5]).difference[0]
        1.1666666666666667
    """
    if len(baseline) != len(method) or not len(baseline):
        raise ValueError(
            f'baseline and method must have a value for each of the same seeds, got {len(baseline)} and {len(method)}'
        )
    first, second = np.asarray(baseline, float), np.asarray(method, float)
    return Comparison(_spread(first), _spread(second), _spread(second - first), _p_value(first, second))


def _spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float('nan')


def _p_value(first: np.ndarray, second: np.ndarray) -> float:
    difference = second - first
    # scipy gives NaN and a warning for differences without spread
    if len(difference) < 2:
        return float('nan')
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    try:
        from scipy.stats import ttest_rel
    except ImportError:
        return float('nan')
    return float(ttest_rel(second, first).pvalue)


def check_metrics(wanted: Sequence[str] | None, known: Iterable[str]) -> None:
    """Raise unless every wanted metric is known.

    Raises:
        ValueError: With the unknown name, the nearest, and all that are known.
    """
    known = list(known)
    for name in wanted or ():
        if name not in known:
            alike = [each for each in known if each.lower() == name.lower()]
            near = f' (did you mean {alike[0]!r}?)' if alike else nearest_name(name, known)
            raise ValueError(f'metrics must be of {", ".join(known)}; got {name!r}{near}')


def comparison_table(
    baseline: list[dict], methods: dict[str, list[dict]], metrics: Sequence[str] | None = None, factor: float = 100.0
) -> str:
    """Markdown table of metrics: baseline, and each method with its gain and p-value.

    Args:
        baseline: metrics by name for each seed.
        methods: likewise by name of the method, for the same seeds in the same order.
        metrics: the rows; by default all metrics of the baseline.
        factor: what values are multiplied by.

    Returns:
        The table; ``±`` is the standard deviation over seeds, that of a gain the one of its paired differences. Where
        a metric has no value (a class that is not in the data), the seeds that have one count, and their number is
        said; a gain takes the seeds where both have one.

    Raises:
        ValueError: a metric that no run has, or not as many runs of a method as of the baseline.
    """
    check_metrics(metrics, dict.fromkeys(name for run in baseline for name in run))
    metrics = list(dict.fromkeys(name for run in baseline for name in run)) if metrics is None else metrics
    lines = [
        '| | baseline | ' + ' | '.join(f'{name} | gain | p' for name in methods) + ' |',
        '|---|---|' + '---|---|---|' * len(methods),
    ]
    for metric in metrics:
        base, cells = _column(baseline, metric, factor), []
        for name, runs in methods.items():
            if len(runs) != len(baseline):
                raise ValueError(f'{name} must have a run for each of the {len(baseline)} seeds, got {len(runs)}')
            cells += _cells(base, _column(runs, metric, factor))
        lines.append(f'| {metric} | {_mean(base)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _column(runs: list[dict], metric: str, factor: float) -> list[float]:
    return [factor * run.get(metric, math.nan) for run in runs]


def _mean(values: list[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 'no value'
    text = _text(*_spread(np.asarray(finite)))
    return text if len(finite) == len(values) else f'{text} ({len(finite)} of {len(values)})'


def _cells(base: list[float], found: list[float]) -> list[str]:
    pairs = [pair for pair in zip(base, found, strict=True) if all(map(math.isfinite, pair))]
    if not pairs:
        return [_mean(found), '-', '-']
    both = compare([first for first, _ in pairs], [second for _, second in pairs])
    few = '' if len(pairs) == len(base) else f' ({len(pairs)} of {len(base)})'
    return [_mean(found), _text(*both.difference, sign=True) + few, _probability(both.p_value)]


def _text(mean: float, deviation: float, sign: bool = False) -> str:
    text = f'{mean:+.1f}' if sign else f'{mean:.1f}'
    return text if math.isnan(deviation) else f'{text} ± {deviation:.1f}'


def _probability(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.2f}' if value >= 0.01 else '< 0.01'
