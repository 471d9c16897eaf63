# SPDX-License-Identifier: Apache-2.0
"""Packaging of clusterplug; the metadata is in pyproject.toml, the version ranges in clusterplug/dependencies.py.

Beside the code a wheel carries ``clusterplug/.mim`` with configs, tools and model-index.yml, the place where
mmengine's ``package::config`` names and ``mim`` look for them. In an editable install the same place holds links.
"""

import os
import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TABLE = runpy.run_path(str(ROOT / 'clusterplug' / 'dependencies.py'))
MIM = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds ``.mim`` to the package: files in a wheel, links in an editable checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            self.link(ROOT / 'clusterplug' / '.mim')
        else:
            self.copy(Path(self.build_lib) / 'clusterplug' / '.mim')

    def link(self, target):
        target.mkdir(exist_ok=True)
        for name in MIM:
            place = target / name
            if place.is_symlink() or place.is_file():
                place.unlink()
            elif place.is_dir():
                shutil.rmtree(place)
            place.symlink_to(os.path.relpath(ROOT / name, target))

    def copy(self, target):
        # An older build may have left files that are gone by now.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__', 'setup_env'))
            else:
                shutil.copy2(source, target / name)


setup(
    python_requires=TABLE['PYTHON'],
    install_requires=TABLE['requirements']('core'),
    extras_require={extra: TABLE['requirements'](extra) for extra in (*TABLE['EXTRAS'], 'all') if extra != 'core'},
    cmdclass={'build_py': BuildWithMim},
)
