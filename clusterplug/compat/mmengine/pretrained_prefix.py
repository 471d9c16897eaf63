# SPDX-License-Identifier: Apache-2.0
"""``init_cfg=dict(type='Pretrained', prefix=...)`` keeps the versions of modules that a checkpoint carries.

mmengine drops them where a prefix is given. mmdet3d's sparse convolutions take a checkpoint without a version for one
of spconv 1 and turn its kernels, so that a MinkUNet, SECOND or SPVCNN backbone keeps its random weights (other shapes:
one warning in the log) or gets turned ones (equal shapes: no word).
"""

from collections import OrderedDict

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Replace ``_load_checkpoint_with_prefix``."""

    def _load_checkpoint_with_prefix(prefix, filename, map_location=None):
        checkpoint = module._load_checkpoint(filename, map_location=map_location)
        whole = checkpoint.get('state_dict', checkpoint)
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        part = OrderedDict((name[len(prefix) :], value) for name, value in whole.items() if name.startswith(prefix))
        if not part:
            raise AssertionError(f'{prefix} is not in the pretrained model')  # as the host does
        versions = getattr(whole, '_metadata', None)
        if versions is not None:
            part._metadata = OrderedDict(
                (name[len(prefix) :], value) for name, value in versions.items() if f'{name}.'.startswith(prefix)
            )
        return part

    return [(module, '_load_checkpoint_with_prefix', _load_checkpoint_with_prefix)]


WORKAROUND = Workaround(
    name='pretrained_prefix',
    host='mmengine.runner.checkpoint',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='mmengine keeps _metadata where a prefix is given',
)
