# SPDX-License-Identifier: Apache-2.0
"""Every workaround for a fault of a host package: small, dated, with the upstream thread, tested, removable.

``apply_all`` changes nothing for tensors on CUDA and imports no host. ``python -m clusterplug doctor`` lists them.
"""

import importlib

from clusterplug.compat._patch import Workaround

_NAMES = (
    'activation_checkpointing',
    'amp_cpu',
    'assign_score',
    'atomic_files',
    'ball_query',
    'checkpoint_order',
    'config_text',
    'ddp_cpu',
    'dynamic_scatter',
    'empty_scans',
    'furthest_points',
    'gather_points',
    'gloo_without_cuda',
    'group_points',
    'headless_show',
    'iou3d',
    'kitti_empty_frames',
    'kitti_rotated_iou',
    'knn',
    'minkunet_voxelize',
    'missing_files',
    'mmcv_sparse_conv',
    'mmpretrain_multimodal',
    'own_config_scope',
    'points_in_boxes',
    'roi_pooling',
    'show_dir',
    'spconv_cpu',
    'spconv_kernel_map',
    'spvcnn_spconv',
    'sync_buffers',
    'three_interpolate',
    'three_nn',
    'torch_load',
    'truncated_files',
    'unknown_labels',
    'unlabelled_scans',
)

__all__ = ['apply_all', 'remove_all', 'workarounds']


def workarounds() -> list[Workaround]:
    """All workarounds, in the order in which they are applied.

    Example:
        >>> from clusterplug import compat
        >>> [w.thread for w in compat.workarounds() if w.name == 'minkunet_voxelize']
        ['open-mmlab/mmdetection3d#3140']
    """
    return [importlib.import_module(f'clusterplug.compat.{name}').WORKAROUND for name in _NAMES]


def apply_all() -> None:
    """Apply every workaround to the hosts that are loaded, and to the others as soon as they are imported.

    A second call changes nothing.

    Example:
        >>> from clusterplug import compat
        >>> compat.apply_all()
    """
    for workaround in workarounds():
        workaround.apply()


def remove_all() -> None:
    """Put every host back into the state in which it was found.

    Example:
        >>> from clusterplug import compat
        >>> compat.remove_all()
        >>> any(workaround.active for workaround in compat.workarounds())
        False
    """
    for workaround in workarounds():
        workaround.remove()
