# SPDX-License-Identifier: Apache-2.0
"""How well the subclasses of a trained model agree with hidden sub-types, next to k-means on the same layer."""

import torch
from torch import Tensor, nn

from clusterplug.attach import ScanSubclasses, subclasses_of
from clusterplug.evaluation.kmeans_within_classes import kmeans_within_classes, means_of_regions
from clusterplug.evaluation.subclass_agreement import SubclassAgreement, subclass_agreement


class SubtypeTable:
    """Points of many scans, seen by two networks through the same layer: with the clustering loss, and without.

    A few points have no feature at a coarse layer; they are left out of everything. Features are kept in half
    precision.

    Example::

        table = SubtypeTable()
        for data, subtypes, objects in scans:
            (ours,), (plain,) = (predict_subclasses(each, data, use_labels=True) for each in (clustered, baseline))
            table.add(ours, plain, subtypes, objects)
        found = subtype_agreement(table, clustered.clustering.loss)
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[Tensor]] = {}
        self.num_scans = 0

    def add(self, ours: ScanSubclasses, plain: ScanSubclasses, subtypes: Tensor, objects: Tensor) -> None:
        """Append a scan.

        Args:
            ours: of the network with the loss, with ``use_labels=True``.
            plain: of that without, around which the same taps were put.
            subtypes: (N,) int64 hidden sub-type, below 0 = unknown.
            objects: (N,) int64 number of the object within the scan, 0 or below = none.
        """
        featured = ours.features.isfinite().all(1) & plain.features.isfinite().all(1)
        rows = dict(
            classes=torch.where(featured, ours.classes, -1),
            subclasses=torch.where(featured, ours.subclasses, -1),
            subtypes=subtypes,
            # the same number in another class is another object
            objects=torch.where(objects > 0, (self.num_scans << 40) + (ours.classes << 32) + objects, -1),
            ours=ours.features.nan_to_num().half(),
            plain=plain.features.nan_to_num().half(),
        )
        if ours.cells is not None:
            rows['cells'] = ours.cells
        for name, values in rows.items():
            self.columns.setdefault(name, []).append(values)
        self.num_scans += 1

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(self.columns[name])

    def __contains__(self, name: str) -> bool:
        return name in self.columns


def subtype_agreement(table: SubtypeTable, loss: nn.Module) -> dict[str, SubclassAgreement]:
    """Normalized mutual information with the hidden sub-types, over points, of six groupings of the same points.

    Args:
        table: the scans.
        loss: the clustering loss of the network that was trained with it.

    Returns:
        ``memory`` and ``memory by object``: the subclasses, of each point or of the mean feature of its object;
        ``k-means with the loss``, ``k-means without``, both also ``by object``: k-means within each class with as many
        clusters, on the features of the layer in the network that was trained with or without the loss, of points or
        of the means of objects. Each with its value per class, and the mean over the classes for which all six have one
        (a class of fewer objects than clusters has none by object).
    """
    memory, classes, subtypes, objects = loss.memory, table['classes'], table['subtypes'], table['objects']
    groupings = {'memory': table['subclasses'], 'memory by object': _memory_by_object(table, loss)}
    for name, column in (('k-means with the loss', 'ours'), ('k-means without', 'plain')):
        features = table[column]
        for suffix, regions in (('', None), (' by object', objects)):
            groupings[name + suffix] = kmeans_within_classes(
                features, classes, memory.num_classes, memory.num_clusters, regions=regions
            )
    found = {name: subclass_agreement(classes, ids, subtypes, memory.num_classes) for name, ids in groupings.items()}
    shared = torch.stack([each.per_class for each in found.values()]).isfinite().all(0)
    return {name: each._replace(mean=float(each.per_class[shared].mean())) for name, each in found.items()}


def _memory_by_object(table: SubtypeTable, loss: nn.Module) -> Tensor:
    """(N,) subclass of the mean feature of each point's object, -1 where the class has none."""
    classes, objects, features = table['classes'], table['objects'], table['ours']
    ids = torch.full_like(classes, -1)
    for c in range(loss.memory.num_classes):
        mine = (classes == c).nonzero()[:, 0]
        if not len(mine):
            continue
        means, member = means_of_regions(features[mine].float(), objects[mine])
        design = None
        if 'cells' in table:
            design, _ = means_of_regions(loss.positions.design(table['cells'][mine]), objects[mine])
        ids[mine] = subclasses_of(means, classes.new_full((len(means),), c), loss, design)[member]
    return ids
