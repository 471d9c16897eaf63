# SPDX-License-Identifier: Apache-2.0
"""A relative ``--show-dir`` is one folder: mmdet3d joins it to the work dir again for every batch, deeper each time."""

import os.path as osp

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Make ``test_out_dir`` absolute before the hook's first use of it; then its own join changes nothing."""
    hook = module.Det3DVisualizationHook
    host_after_test_iter = hook.after_test_iter

    def after_test_iter(self, runner, batch_idx, data_batch, outputs) -> None:
        if self.draw and self.test_out_dir is not None and not osp.isabs(self.test_out_dir):
            self.test_out_dir = osp.abspath(osp.join(runner.work_dir, runner.timestamp, self.test_out_dir))
        host_after_test_iter(self, runner, batch_idx, data_batch, outputs)

    return [(hook, 'after_test_iter', after_test_iter)]


WORKAROUND = Workaround(
    name='show_dir',
    host='mmdet3d.engine.hooks.visualization_hook',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='the hook joins the folder once',
)
