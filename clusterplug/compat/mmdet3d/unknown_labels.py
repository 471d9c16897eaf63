# SPDX-License-Identifier: Apache-2.0
"""Labels that no table names are ignored: in mmdet3d they become class 0, a car, or an IndexError in a worker.

mmdet3d 1.4.0 fills the table from raw labels to classes with zeros, so every raw id that ``seg_label_mapping`` leaves
out counts as class 0 in training and in evaluation; an id above ``max_label`` is an IndexError, a negative one is
counted from the end. Here all of them are ``ignore_index``, with one warning that lists them.
"""

import numpy as np

from clusterplug.compat._warn import warn_once
from clusterplug.compat.workaround import Workaround


def map_labels(raw: np.ndarray, table: np.ndarray, known: np.ndarray | None, ignore: int) -> tuple[np.ndarray, dict]:
    """Map raw labels by a table; what the table does not name becomes ``ignore``.

    Args:
        raw: (N,) integers of any sign.
        table: (L,) class of each raw label.
        known: (L,) whether a raw label was named; None: all of the table.
        ignore: class of the others.

    Returns:
        (N,) int64 classes, and the number of points of each unknown label.
    """
    raw, table = np.asarray(raw).astype(np.int64), np.asarray(table)
    inside = (raw >= 0) & (raw < len(table))
    place = np.where(inside, raw, 0)
    good = inside if known is None else inside & known[place]
    classes = np.where(good, table[place], ignore)
    values, counts = np.unique(raw[~good], return_counts=True)
    return classes, dict(zip(values.tolist(), counts.tolist(), strict=True))


def patch(module):
    """Replace the table of ``SemanticKittiDataset``, and the step that applies the table of any data set."""
    from mmdet3d.datasets.seg3d_dataset import Seg3DDataset
    from mmdet3d.datasets.transforms.loading import PointSegClassMapping

    host_parse, host_transform = Seg3DDataset.parse_data_info, PointSegClassMapping.transform

    def get_seg_label_mapping(self, metainfo):
        largest = max([metainfo.get('max_label', 0), *metainfo['seg_label_mapping']])
        table = np.full(largest + 1, self.ignore_index, dtype=np.int64)
        self.known_labels = np.zeros(len(table), dtype=bool)
        for raw, label in metainfo['seg_label_mapping'].items():
            table[raw], self.known_labels[raw] = label, True
        return table

    def parse_data_info(self, info):
        info = host_parse(self, info)
        for each in info if isinstance(info, list) else [info]:
            each['unknown_labels'] = dict(known=getattr(self, 'known_labels', None), ignore=self.ignore_index)
        return info

    def transform(self, results):
        if 'pts_semantic_mask' not in results and 'eval_ann_info' in results:
            return results  # a test split without labels
        rule = results.get('unknown_labels')
        if rule is None:  # a data set that is not a Seg3DDataset
            return host_transform(self, results)
        classes, unknown = map_labels(
            results['pts_semantic_mask'], results['seg_label_mapping'], rule['known'], rule['ignore']
        )
        if unknown:
            listed = ', '.join(f'{label} ({count} points)' for label, count in list(unknown.items())[:8])
            scan = results.get('lidar_path', 'a scan')
            warn_once(
                'unknown labels',
                f'{scan} has labels that seg_label_mapping of the config does not name: {listed}'
                f'{", ..." if len(unknown) > 8 else ""}; such points are ignored, here and in all other scans. If they '
                'are classes, name them in labels_map (and raise max_label)',
            )
        results['pts_semantic_mask'] = classes
        if 'eval_ann_info' in results:
            results['eval_ann_info']['pts_semantic_mask'] = classes
        return results

    return [
        (module.SemanticKittiDataset, 'get_seg_label_mapping', get_seg_label_mapping),
        (Seg3DDataset, 'parse_data_info', parse_data_info),
        (PointSegClassMapping, 'transform', transform),
    ]


WORKAROUND = Workaround(
    name='unknown_labels',
    host='mmdet3d.datasets.semantickitti_dataset',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d fills its table with ignore_index',
)
