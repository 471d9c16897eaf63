# SPDX-License-Identifier: Apache-2.0
"""A test split without labels runs to its end; in mmdet3d ``SegMetric`` ends it with a KeyError.

Its ``submission_prefix`` fails with mmcv 2 and would write ScanNet's text files, and its ``pklfile_prefix`` does
nothing, so both are refused when the metric is built.
"""

from clusterplug.compat._warn import warn_once
from clusterplug.compat.workaround import Workaround

_NOTHING = (None, None)  # keeps its position, as the results of ranks are joined by position


def patch(module):
    """Leave scans without labels out of the evaluation."""
    metric = module.SegMetric
    host_init, host_process, host_compute = metric.__init__, metric.process, metric.compute_metrics

    def __init__(self, *args, **kwargs):
        host_init(self, *args, **kwargs)
        for name in ('submission_prefix', 'pklfile_prefix'):
            if getattr(self, name, None) is not None:
                raise ValueError(
                    f"{name} of SegMetric writes no file that a server takes; use type='clusterplug."
                    "SemanticKittiSubmission' with out=FOLDER, or tools/test.py --submission FOLDER"
                )

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            if 'pts_semantic_mask' in (sample.get('eval_ann_info') or {}):
                host_process(self, data_batch, [sample])
            else:
                self.results.append(_NOTHING)

    def compute_metrics(self, results):
        labelled = [each for each in results if each is not _NOTHING and each[0] is not None]
        if len(labelled) < len(results):
            warn_once(
                'not evaluated',
                f'{len(results) - len(labelled)} of {len(results)} scans have no labels and were not evaluated; write '
                "the server's files with tools/test.py --submission FOLDER",
            )
        return host_compute(self, labelled) if labelled else {}

    return [(metric, '__init__', __init__), (metric, 'process', process), (metric, 'compute_metrics', compute_metrics)]


WORKAROUND = Workaround(
    name='unlabelled_scans',
    host='mmdet3d.evaluation.metrics.seg_metric',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d tests scans without labels',
)
