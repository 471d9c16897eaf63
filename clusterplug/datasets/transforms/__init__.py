# SPDX-License-Identifier: Apache-2.0
"""Views, masks and values that join a sample on its way to the model."""

from clusterplug.datasets.transforms.cyclic_mask import CyclicMask
from clusterplug.datasets.transforms.multi_crop import MultiCrop
from clusterplug.datasets.transforms.pack_views import PackViews
from clusterplug.datasets.transforms.point_views import PointViews
from clusterplug.datasets.transforms.sample_values import SampleValues, look_up, read_likelihoods, sample_id
from clusterplug.datasets.transforms.slice_views import LoadSlices, SliceViews
from clusterplug.datasets.transforms.sweep_slices import SweepSlices

__all__ = [
    'CyclicMask',
    'LoadSlices',
    'MultiCrop',
    'PackViews',
    'PointViews',
    'SampleValues',
    'SliceViews',
    'SweepSlices',
    'look_up',
    'read_likelihoods',
    'sample_id',
]
