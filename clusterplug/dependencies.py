# SPDX-License-Identifier: Apache-2.0
"""Every package that clusterplug works with, the versions it works with, and the extra that brings it.

The one table behind ``setup.py`` (which runs this file without importing torch) and ``python -m clusterplug doctor``.
The exact versions of the tried environment are pinned in ``requirements/``.
"""

import re
from typing import NamedTuple

__all__ = ['DEPENDENCIES', 'EXTRAS', 'PYTHON', 'Dependency', 'fits', 'requirements']

PYTHON = '>=3.10'

EXTRAS = {
    'core': 'pure-torch kernels, layers and losses',
    'mmdet3d': 'losses inside mmdet3d and mmengine training runs, LiDAR city',
    'vit': 'token clustering inside timm and transformers models',
    'video': 'text-video retrieval',
    'estimators': 'results compared with scikit-learn; agglomerative and graph routines of scipy',
    'vis': 'pictures',
    'hosts': 'further hosts, tried with these versions',
    'test': 'running the tests',
    'docs': 'building the documentation',
}


class Dependency(NamedTuple):
    """One package.

    Args:
        package: Its name on the package index.
        module: What to import.
        allowed: Allowed versions, e.g. ``'>=2.0,<2.2'``.
        extra: Key of ``EXTRAS``.
        why: Reason of the upper bound, or how the package is used.
        alternatives: Packages that bring the same module.
        only_with: Package without which the bound does not matter.
    """

    package: str
    module: str
    allowed: str
    extra: str
    why: str = ''
    alternatives: tuple[str, ...] = ()
    only_with: str = ''


_SPCONV = ('spconv-cu126', 'spconv-cu124', 'spconv-cu121', 'spconv-cu120', 'spconv-cu118', 'spconv-cu114')

DEPENDENCIES = (
    Dependency('torch', 'torch', '>=2.4', 'core'),
    Dependency('numpy', 'numpy', '>=1.24', 'core'),
    Dependency('mmengine', 'mmengine', '>=0.10,<1.0', 'mmdet3d', 'configs, registry, Runner', ('onedl-mmengine',)),
    Dependency('mmcv', 'mmcv', '>=2.0.0,<2.2', 'mmdet3d', 'mmdet3d 1.4 refuses 2.2 (mmdetection#11763)'),
    Dependency('mmdet', 'mmdet', '>=3.0,<3.4', 'mmdet3d', 'mmdet3d 1.4 refuses 3.4'),
    Dependency('mmdet3d', 'mmdet3d', '>=1.4,<1.5', 'mmdet3d', 'the host that configs inherit from'),
    Dependency('spconv', 'spconv', '>=2.3,<2.4', 'mmdet3d', 'sparse convolution of MinkUNet', _SPCONV),
    Dependency('open3d', 'open3d', '>=0.17', 'mmdet3d', 'ray casting of LiDAR city'),
    Dependency('numpy', 'numpy', '<2.4', 'mmdet3d', 'mmdet3d 1.4 calls np.in1d, removed in 2.4', only_with='mmdet3d'),
    Dependency(
        'setuptools',
        'pkg_resources',
        '<82',
        'mmdet3d',
        'mmengine needs pkg_resources',
        only_with='mmengine',
    ),
    Dependency('timm', 'timm', '>=1.0', 'vit'),
    Dependency('transformers', 'transformers', '>=5.0,<6', 'vit'),
    Dependency('open_clip_torch', 'open_clip', '>=3.0,<4', 'hosts', 'towers of text-video retrieval'),
    Dependency('segment-anything', 'segment_anything', '>=1.0,<2', 'hosts', 'token clustering inside SAM'),
    Dependency('mmsegmentation', 'mmseg', '>=1.2,<2', 'hosts', 'token clustering and FEC in mmsegmentation'),
    Dependency('av', 'av', '>=13', 'video', 'reads videos'),
    Dependency('decord2', 'decord', '>=3.0', 'video', 'reads videos in mm pipelines', ('decord',)),
    Dependency('scikit-learn', 'sklearn', '>=1.6', 'estimators'),
    Dependency('scipy', 'scipy', '>=1.10', 'estimators'),
    Dependency('matplotlib', 'matplotlib', '>=3.7', 'vis'),
    Dependency('pytest', 'pytest', '>=8', 'test'),
    Dependency('hypothesis', 'hypothesis', '>=6.100', 'test'),
    Dependency('ruff', 'ruff', '>=0.8', 'test'),
    Dependency('mypy', 'mypy', '>=2.0', 'test'),
    Dependency('mkdocs', 'mkdocs', '>=1.6,<2', 'docs'),
    Dependency('mkdocs-material', 'material', '>=9.5,<10', 'docs'),
    Dependency('mkdocstrings', 'mkdocstrings', '>=0.30', 'docs'),
    Dependency('mkdocstrings-python', 'mkdocstrings_handlers', '>=1.16', 'docs'),
)


def requirements(extra: str) -> list[str]:
    """Requirement strings of an extra, as ``setup.py`` wants them.

    Args:
        extra: Key of ``EXTRAS``, or ``'all'``.

    Returns:
        list[str]: E.g. ``['torch>=2.4', 'numpy>=1.24']``.

    Example:
        >>> requirements('core')
        ['torch>=2.4', 'numpy>=1.24']
    """
    wanted = [name for name in EXTRAS if name != 'core'] if extra == 'all' else [extra]
    return [f'{d.package}{d.allowed}' for d in DEPENDENCIES if d.extra in wanted]


def fits(version: str, allowed: str) -> bool:
    """Whether a version lies in a range such as ``'>=2.0,<2.2'``.

    Compares the numbers only: a pre-release counts as the release it leads to, a local part such as ``+cu126`` is
    ignored.

    Args:
        version: E.g. ``'2.11.0+cpu'``.
        allowed: Conditions with ``>=`` and ``<``, joined by commas.

    Returns:
        bool: Whether every condition holds.

    Raises:
        ValueError: The range has another form.

    Example:
        >>> fits('2.11.0+cpu', '>=2.1'), fits('2.2.0', '>=2.0,<2.2'), fits('2.2.0rc1', '<2.2')
        (True, False, False)
    """
    number = _numbers(version)
    for condition in allowed.split(','):
        match = re.fullmatch(r'(>=|<)\s*([\d.]+)', condition.strip())
        if match is None:
            raise ValueError(f"allowed must be conditions such as '>=2.0,<2.2'; got {allowed!r}")
        bound = _numbers(match[2])
        length = max(len(number), len(bound))
        have, limit = (part + (0,) * (length - len(part)) for part in (number, bound))
        if not (have >= limit if match[1] == '>=' else have < limit):
            return False
    return True


def _numbers(version):
    return tuple(int(part) for part in re.match(r'\d*(?:\.\d+)*', version)[0].split('.') if part)
