"""``clusterplug::family/config.py`` names a config of clusterplug, as ``mmdet3d::...`` names one of mmdet3d."""

from clusterplug.compat._patch import Workaround


def patch(module):
    """Add clusterplug to the packages whose configs mmengine looks for; a closed list there, OpenMMLab's own only."""
    if 'clusterplug' in module.MODULE2PACKAGE:
        return []
    # mmengine asks for a distribution of this name first, whose place an editable install does not tell, and then for
    # a module, whose folder is the right one in every kind of install. So the name is that of a module.
    return [(module, 'MODULE2PACKAGE', {**module.MODULE2PACKAGE, 'clusterplug': 'clusterplug.version'})]


WORKAROUND = Workaround(
    name='config_scope',
    host='mmengine.config.utils',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='mmengine looks for the configs of any installed package',
)
