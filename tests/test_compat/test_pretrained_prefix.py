# SPDX-License-Identifier: Apache-2.0
"""init_cfg with a prefix: the versions of modules survive, so that sparse kernels are not turned."""

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug import compat
from clusterplug.compat.mmengine.pretrained_prefix import WORKAROUND


def test_versions_of_modules_are_kept(tmp_path):
    compat.apply_all()
    from mmdet3d.registry import MODELS
    from mmengine.model import BaseModule

    sparse = dict(type='SparseConv3d', in_channels=8, out_channels=8, kernel_size=8)  # every turn fits
    model = BaseModule()
    model.backbone = MODELS.build(sparse)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'whole.pth')

    from mmengine.runner.checkpoint import _load_checkpoint_with_prefix

    found = _load_checkpoint_with_prefix('backbone', str(tmp_path / 'whole.pth'))
    assert found._metadata[''] == {'version': 2}
    assert torch.equal(found['weight'], model.backbone.weight)
    with pytest.raises(AssertionError, match=r'neck\. is not in'):
        _load_checkpoint_with_prefix('neck', str(tmp_path / 'whole.pth'))
    WORKAROUND.remove()
    try:  # the fault is still there
        from mmengine.runner import checkpoint

        assert not hasattr(
            checkpoint._load_checkpoint_with_prefix('backbone', str(tmp_path / 'whole.pth')), '_metadata'
        )
    finally:
        WORKAROUND.apply()
