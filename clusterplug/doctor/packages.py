# SPDX-License-Identifier: Apache-2.0
"""Versions of packages, without importing them."""

import re
from dataclasses import dataclass
from importlib import metadata

from clusterplug.dependencies import DEPENDENCIES, fits

__all__ = ['Package', 'examine_packages', 'fixed_version', 'library_hint']

# The versions of requirements/, which are known to work together. A wheel has no requirements folder, so the few that
# a problem can name stand here; a test compares them with the files.
PINNED = {
    'torch': '2.11.0', 'numpy': '2.3.5', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmdet3d': '1.4.0',
    'spconv': '2.3.8', 'open3d': '0.19.0', 'setuptools': '78.1.1', 'scikit-learn': '1.9.0', 'scipy': '1.17.1',
    'matplotlib': '3.11.2', 'timm': '1.0.31', 'transformers': '5.23.0', 'av': '18.1.0', 'decord2': '3.4.0',
}  # fmt: skip

# Shared libraries that wheels expect from the system -> Debian's package with them.
LIBRARIES = {
    'libGL.so.1': 'libgl1',
    'libgthread-2.0.so.0': 'libglib2.0-0',
    'libglib-2.0.so.0': 'libglib2.0-0',
    'libX11.so.6': 'libx11-6',
    'libXext.so.6': 'libxext6',
    'libSM.so.6': 'libsm6',
    'libgomp.so.1': 'libgomp1',
    'libEGL.so.1': 'libegl1',
    'libusb-1.0.so.0': 'libusb-1.0-0',
}


@dataclass
class Package:
    """One row of the table: what is wanted, what is there."""

    requirement: str
    found: str
    module: str
    extra: str
    allowed: str
    why: str
    version: str | None
    in_range: bool
    imports: bool | None = None
    error: str = ''


def examine_packages(find_version=None) -> list[Package]:
    """Compare what is installed with the table of dependencies.

    Args:
        find_version (Callable): ``find_version(package)`` returns its version or None.

    Returns:
        list[Package]: One entry for each dependency; two for a package with two bounds, of which the second counts
            only beside the package that asks for it.

    Example:
        >>> {p.requirement: p.in_range for p in examine_packages({'mmcv': '2.2.0'}.get)}['mmcv']
        False
    """
    find_version = find_version or _installed_version
    packages = []
    for need in DEPENDENCIES:
        if need.only_with and not find_version(need.only_with):
            continue
        names = (need.package, *need.alternatives)
        found, version = next(((name, v) for name in names if (v := find_version(name))), (need.package, None))
        in_range = version is None or fits(version, need.allowed)
        packages.append(
            Package(need.package, found, need.module, need.extra, need.allowed, need.why, version, in_range)
        )
    return packages


def fixed_version(package: Package) -> str:
    """What to write after ``pip install`` to get a version of a package that works."""
    if package.found != package.requirement and package.found.startswith('spconv'):
        return f'{package.found}==2.3.8'
    if package.requirement == 'mmcv':
        return "'setuptools<82' wheel ninja && MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv==2.1.0"
    pinned = PINNED.get(package.requirement)
    return f'{package.requirement}=={pinned}' if pinned else f"'{package.requirement}{package.allowed}'"


def library_hint(error: str) -> str:
    """Command that fixes an import error about a shared library of the system, or ''."""
    match = re.search(r'(lib[\w.+-]+\.so[\d.]*): cannot open shared object file', error)
    return f'sudo apt install {LIBRARIES[match[1]]}' if match and match[1] in LIBRARIES else ''


def _installed_version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
