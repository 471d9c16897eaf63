# SPDX-License-Identifier: Apache-2.0
"""A base config of clusterplug keeps the scope that it names itself: mmengine gives it the name of its package.

With ``_base_ = 'clusterplug::point_cluster/x.py'`` mmengine writes ``_scope_='clusterplug'`` into every part, so that
mmdet3d's own types (``Det3DLocalVisualizer``, ``MinkUNet``) are looked for in the wrong package. clusterplug's configs
have ``default_scope = 'mmdet3d'`` and the like, and name their own types in full.
"""

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Wrap ``Config._get_cfg_path``, which finds the file of a base and the scope that its parts get."""
    host = module.Config._get_cfg_path

    def get_cfg_path(cfg_path, filename):
        path, scope = host(cfg_path, filename)
        return path, None if scope == 'clusterplug' else scope

    return [(module.Config, '_get_cfg_path', staticmethod(get_cfg_path))]


WORKAROUND = Workaround(
    name='own_config_scope',
    host='mmengine.config.config',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='mmengine takes the default_scope of an external base config',
)
