# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's models can be imported beside a transformers that no longer has what its text models need.

mmpretrain 1.2.0 switches its multimodal models on for any transformers from 4.28 on. They import
``apply_chunking_to_forward`` and others from ``transformers.modeling_utils``, which transformers 5 no longer has there,
so that ``mmpretrain.models`` cannot be imported at all, image classifiers included (nor mmsegmentation, which imports
it). Switched off, the multimodal models are mmpretrain's own placeholders, and the rest works.
"""

import importlib

from clusterplug.compat.workaround import Workaround


def _has_what_they_import() -> bool:
    try:
        return hasattr(importlib.import_module('transformers.modeling_utils'), 'apply_chunking_to_forward')
    except ImportError:
        return False


def patch(module):
    """Switch the multimodal models off where they could not be imported."""
    if not module.WITH_MULTIMODAL or _has_what_they_import():
        return []
    return [(module, 'WITH_MULTIMODAL', False)]


WORKAROUND = Workaround(
    name='mmpretrain_multimodal',
    host='mmpretrain.utils.dependency',
    patch=patch,
    thread='',
    noted='2026-11, mmpretrain 1.2.0 with transformers 5.23',
    until='mmpretrain imports with transformers 5',
)
