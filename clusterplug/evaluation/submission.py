# SPDX-License-Identifier: Apache-2.0
"""Predictions of a test split as the files that SemanticKITTI's server takes."""

import os
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric

from clusterplug.registry import METRICS


@METRICS.register_module()
class SemanticKittiSubmission(BaseMetric):
    """Write ``<out>/sequences/NN/predictions/<scan>.label``: one raw label (uint32) a point, single- or multi-scan.

    Needs no labels. Points with NaN or inf, which are not read, and points that a model's extra output calls ignored
    become unlabeled (0); of several scans at once the labels of the current one are written. At the end every scan of
    the split is checked: it is there, and has as many labels as points.

    Args:
        out: Folder to write; it must not hold predictions of an earlier run. A name that ends in ``.zip`` writes the
            folder without the ending and the zip next to it.
        collect_device: As in mmengine.
        prefix: As in mmengine.

    Raises:
        FileExistsError: ``out`` holds predictions already.
        ValueError: A scan with another number of predictions than points, or without any; a scan that is missing.

    Example:
        ``test_evaluator = dict(type='clusterplug.SemanticKittiSubmission', out='submission.zip')``
    """

    def __init__(self, out: str, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        from mmengine.dist import is_main_process

        self.zip = Path(out) if str(out).endswith('.zip') else None
        self.out = Path(str(out)[:-4] if self.zip else out)
        if not self.out.name:
            raise ValueError(f'out must name a folder or a .zip file, got {out!r}')
        if is_main_process():
            if self.out.exists() and not self.out.is_dir():
                raise FileExistsError(f'{self.out} is a file; predictions need a folder: choose another name')
            if any(self.out.glob('sequences/*/predictions/*')):
                raise FileExistsError(
                    f'{self.out} holds predictions already; choose another folder, or remove it if they are of no use'
                )
        self._inverse = self._size = None

    def process(self, data_batch, data_samples) -> None:
        """Write the scans of a batch."""
        from clusterplug.datasets.semantickitti_submission import raw_labels, write_prediction

        if self._inverse is None:
            self._inverse = raw_labels(self._mapping(), len(self.dataset_meta['classes']))
        for sample in data_samples:
            scan, columns = sample.get('lidar_path'), int(sample.get('num_pts_feats') or 4)
            if scan is None:
                raise ValueError("a data sample has no 'lidar_path'; leave meta_keys of Pack3DDetInputs at its default")
            classes = sample['pred_pts_seg']['pts_semantic_mask']
            classes = classes.cpu().numpy() if hasattr(classes, 'cpu') else np.asarray(classes)
            classes = classes[: sample.get('current_points', len(classes))]
            write_prediction(
                self.out, scan, classes, self._inverse, finite=sample.get('finite_points'), columns=columns
            )
            self.results.append((os.fspath(scan), os.path.getsize(scan) // (4 * columns)))

    def _mapping(self):
        mapping = self.dataset_meta.get('seg_label_mapping')
        if mapping is None:
            raise ValueError('the data set has no seg_label_mapping; submissions need a SemanticKITTI data set')
        ignore = self.dataset_meta.get('ignore_index')
        items = mapping.items() if hasattr(mapping, 'items') else enumerate(np.asarray(mapping).tolist())
        return {raw: label for raw, label in items if label != ignore}

    def evaluate(self, size: int) -> dict:
        """Check and zip; ``size`` is the number of scans of the split."""
        self._size = size
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict:
        """Number of scans that were written, after all of them were checked."""
        from mmengine.logging import print_log

        from clusterplug.datasets.semantickitti_submission import check_submission, missing_scans, zip_submission

        scans = dict(results)
        faults = check_submission(self.out, scans)
        if self._size is not None and len(scans) != self._size:
            faults.append(f'{len(scans)} scans were predicted, but the split has {self._size}')
        if faults:
            listed = faults[:10] + [f'... and {len(faults) - 10} more'] * (len(faults) > 10)
            raise ValueError('\n  '.join([f'{self.out} cannot be submitted: {len(faults)} faults', *listed]))
        for folder, count in missing_scans(scans).items():
            print_log(
                f'{folder} holds {count} more scans, which this split leaves out; the server wants all', 'current'
            )
        if self.zip:
            zip_submission(self.out, self.zip, scans)
        print_log(f'{self.zip or self.out}: predictions of {len(scans)} scans', 'current')
        return {'submission_scans': len(scans)}
