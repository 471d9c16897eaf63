"""Baseline and method over seeds: mean, spread, and a paired test."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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


def comparison_table(
    baseline: list[dict], methods: dict[str, list[dict]], metrics: Sequence[str] | None = None, factor: float = 100.0
) -> str:
    """Markdown table of metrics: baseline, and each method with its gain and p-value.

    Args:
        baseline: metrics by name for each seed.
        methods: likewise by name of the method, for the same seeds in the same order.
        metrics: the rows; by default all metrics of the baseline that are finite everywhere.
        factor: what values are multiplied by.

    Returns:
        The table; ``±`` is the standard deviation over seeds, that of a gain the one of its paired differences.
    """
    if metrics is None:
        everything = [*baseline, *(values for runs in methods.values() for values in runs)]
        metrics = [m for m in baseline[0] if all(math.isfinite(run.get(m, math.nan)) for run in everything)]
    lines = [
        '| | baseline | ' + ' | '.join(f'{name} | gain | p' for name in methods) + ' |',
        '|---|---|' + '---|---|---|' * len(methods),
    ]
    for metric in metrics:
        cells, base = [], [factor * run[metric] for run in baseline]
        for runs in methods.values():
            found = compare(base, [factor * run[metric] for run in runs])
            cells += [_text(*found.method), _text(*found.difference, sign=True), _probability(found.p_value)]
        lines.append(f'| {metric} | {_text(*compare(base, base).baseline)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _text(mean: float, deviation: float, sign: bool = False) -> str:
    text = f'{mean:+.1f}' if sign else f'{mean:.1f}'
    return text if math.isnan(deviation) else f'{text} ± {deviation:.1f}'


def _probability(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.2f}' if value >= 0.01 else '< 0.01'
