# SPDX-License-Identifier: Apache-2.0
"""Scans with classes of one's own, in the files of SemanticKITTI."""

import colorsys

from mmdet3d.datasets import SemanticKittiDataset

from clusterplug.registry import DATASETS


@DATASETS.register_module()
class OwnScansDataset(SemanticKittiDataset):
    """A folder in SemanticKITTI layout, with labels and classes of one's own.

    ``SemanticKittiDataset`` takes a part of its 19 classes only. Here one table says what the raw labels are; the
    number of classes, the ignored index (the number of classes) and the colors follow from it.

    Args:
        labels: Raw label (0 to 65535, the lower 16 bits of a label file) to the name of its class, several may
            have one; classes are numbered in the order in which their names come. Raw labels that are not in it, or
            have the name None, are ignored in training and evaluation.
        metainfo: Further information such as ``palette``; classes and mapping of a base config are
            replaced by ``labels``.
        ignore_index: That of a base config is replaced by the number of classes.
        **options: As ``SemanticKittiDataset``.

    Raises:
        ValueError: A raw label that is no integer from 0 to 65535, or no class.

    Example:
        ``dict(type='clusterplug.OwnScansDataset', data_root='data/mine', labels={1: 'ground', 7: 'tree'})``
    """

    def __init__(self, labels: dict, metainfo: dict | None = None, ignore_index: int | None = None, **options):
        bad = [raw for raw in labels if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= 65535]
        if bad:
            raise ValueError(f'labels must have raw labels from 0 to 65535 as keys, got {bad[0]!r}')
        classes = tuple(dict.fromkeys(name for name in labels.values() if name is not None))
        if not classes:
            raise ValueError('labels must name at least one class, got none')
        ignored, number = len(classes), {name: index for index, name in enumerate(classes)}
        palette = (metainfo or {}).get('palette')
        if palette is None or len(palette) != len(classes):
            palette = [_color(index / len(classes)) for index in range(len(classes))]
        everything = dict(classes=classes, palette=palette)
        everything |= dict.fromkeys(('seg_valid_class_ids', 'seg_all_class_ids'), tuple(range(ignored)))
        self.METAINFO = everything
        metainfo = {
            **everything, 'max_label': max(labels),
            'seg_label_mapping': {raw: number.get(name, ignored) for raw, name in labels.items()},
        }  # fmt: skip
        super().__init__(metainfo=metainfo, ignore_index=ignored, **options)


def _color(hue: float) -> list[int]:
    return [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, 0.9)]
