# SPDX-License-Identifier: Apache-2.0
"""Several trainings of configs side by side, restartable, and the comparison of their metrics."""

from clusterplug.experiments.compare import Comparison, compare, comparison_table
from clusterplug.experiments.progress import progress, seconds_per_step
from clusterplug.experiments.run import Run, result_of, train_and_test
from clusterplug.experiments.side_by_side import RunFailed, run_all

__all__ = [
    'Comparison', 'Run', 'RunFailed', 'compare', 'comparison_table', 'progress', 'result_of', 'run_all',
    'seconds_per_step', 'train_and_test',
]  # fmt: skip
