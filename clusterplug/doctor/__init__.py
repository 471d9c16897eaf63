# SPDX-License-Identifier: Apache-2.0
"""Finds out what is installed, whether it fits together, and what works; nothing is imported in this process.

``examine`` compares versions with :mod:`clusterplug.dependencies` and has ``probes`` try imports and small
computations in a process of their own, so that a library that crashes on import is a finding and not the end.
"""

import platform
from dataclasses import dataclass, field

from clusterplug.dependencies import PYTHON, fits
from clusterplug.doctor.packages import Package, examine_packages, fixed_version, library_hint
from clusterplug.doctor.runner import ProbeResult, run_probes

__all__ = ['Findings', 'Part', 'Problem', 'examine']


@dataclass
class Problem:
    """Something that does not fit, and the command that fixes it; ``kind`` is ``'package'`` or ``'part'``."""

    what: str
    fix: str
    kind: str = 'package'


@dataclass
class Part:
    """A part of clusterplug: ``works``, ``broken``, or ``not installed`` with the command that installs it."""

    name: str
    state: str
    detail: str = ''


@dataclass
class Findings:
    """Everything that the doctor found.

    Args:
        python: Version of Python.
        system: Operating system and processor.
        packages: One entry for each row of the table of dependencies.
        devices: What torch, spconv and mmcv can compute on.
        parts: Which parts of clusterplug work.
        workarounds: Faults of hosts that ``clusterplug.compat`` works around.
        problems: What must be fixed.
    """

    python: str
    system: str
    packages: list[Package] = field(default_factory=list)
    devices: dict = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    workarounds: list[dict] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the core works and nothing that is installed is broken or out of range."""
        return not self.problems


# Part -> (probe, packages without which the part is "not installed", command that installs them)
PARTS = {
    'pure-torch kernels': ('kernels', (), ''),
    'losses and layers': ('losses', (), ''),
    'estimators': ('estimators', ('scikit-learn', 'scipy'), "pip install 'clusterplug[estimators]'"),
    'mm registry (type="clusterplug.X")': ('registry', ('mmengine',), 'pip install mmengine'),
    'mmdet3d hosts': (
        'hosts', ('mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'spconv'), 'make setup   (or see docs/getting_started.md)',
    ),
    'token clustering (clusterplug.patch)': ('tokens', (), ''),
    'token clustering in timm': ('tokens_timm', ('timm',), 'pip install timm==1.0.31'),
    'token clustering in transformers': ('tokens_transformers', ('transformers',), 'pip install transformers==5.23.0'),
    'text-video retrieval (CenterCLIP)': (
        'retrieval', ('mmengine', 'transformers', 'av'), "pip install 'clusterplug[video]' mmengine",
    ),
    'FEC backbone': ('fec', (), ''),
    'LiDAR city': ('lidar_city', ('open3d',), 'pip install open3d==0.19.0'),
    'pictures': ('pictures', ('matplotlib',), "pip install 'clusterplug[vis]'"),
    'tests': ('tests', ('pytest', 'hypothesis'), "pip install 'clusterplug[test,estimators]'"),
    'documentation': ('docs', ('mkdocs', 'mkdocs-material', 'mkdocstrings'), "pip install 'clusterplug[docs]'"),
}  # fmt: skip


def examine(find_version=None, probe=run_probes) -> Findings:
    """Examine the installation.

    Args:
        find_version (Callable): ``find_version(package)`` returns its version or None; importlib.metadata by default.
        probe (Callable): ``probe(names)`` returns {name: ProbeResult}; a process of its own by default.

    Returns:
        Findings: What was found.

    Example:
        >>> findings = examine(find_version={'torch': '1.13.1', 'numpy': '2.3.5'}.get, probe=lambda names: {})
        >>> findings.problems[0].what
        'torch 1.13.1 is outside >=2.4'
    """
    findings = Findings(platform.python_version(), f'{platform.system()} {platform.machine()}')
    findings.packages = examine_packages(find_version)
    installed = {package.requirement: package for package in findings.packages if package.version}
    modules = {f'import {package.module}' for package in installed.values()}
    wanted = ['devices', 'workarounds', *(name for name, needs, _ in PARTS.values() if set(needs) <= set(installed))]
    # decord before torch ends the process later on (dmlc/decord#293)
    results = probe([*sorted(modules, key=lambda name: (name != 'import torch', name)), *wanted])

    _check_versions(findings)
    _check_imports(findings, installed, results)
    _check_parts(findings, installed, results)
    _check_devices(findings, installed, results)
    findings.workarounds = results.get('workarounds', ProbeResult()).value or []
    return findings


def _check_versions(findings):
    if not fits(findings.python, PYTHON):
        findings.problems.append(Problem(f'Python {findings.python} is outside {PYTHON}', 'make a new environment'))
    for package in findings.packages:
        if package.version is None and package.extra == 'core':
            fix = f'pip install {fixed_version(package)}'
            findings.problems.append(Problem(f'{package.requirement} is not installed', fix))
        elif package.version and not package.in_range:
            why = f' ({package.why})' if package.why else ''
            what = f'{package.found} {package.version} is outside {package.allowed}{why}'
            findings.problems.append(Problem(what, f'pip install {fixed_version(package)}'))


def _check_imports(findings, installed, results):
    for package in findings.packages:
        result = results.get(f'import {package.module}')
        if not package.version or result is None:
            continue
        package.imports, package.error = result.ok, result.error
        first = package is installed[package.requirement] or package.allowed == installed[package.requirement].allowed
        if not result.ok and first:
            fix = library_hint(result.error) or f'pip install --force-reinstall --no-deps {fixed_version(package)}'
            findings.problems.append(Problem(f'{package.found} does not import: {result.error}', fix))


def _check_parts(findings, installed, results):
    broken = {package.module for package in installed.values() if package.imports is False}
    for name, (probe, needs, command) in PARTS.items():
        missing = [need for need in needs if need not in installed]
        result = results.get(probe, ProbeResult(ok=False, error='not tried'))
        if missing:
            findings.parts.append(Part(name, 'not installed', f'{", ".join(missing)} missing: {command}'))
        elif result.ok:
            findings.parts.append(Part(name, 'works', str(result.value or '')))
        else:
            findings.parts.append(Part(name, 'broken', result.error))
            # A host that does not import is a problem already, with its own command.
            if not broken.intersection(installed[need].module for need in needs):
                fix = library_hint(result.error) or 'pip install --force-reinstall clusterplug   (or: make setup)'
                findings.problems.append(Problem(f'{name}: {result.error}', fix, 'part'))


def _check_devices(findings, installed, results):
    findings.devices = devices = results.get('devices', ProbeResult()).value or {}
    if not devices.get('cuda'):
        return
    if 'spconv' in installed and devices.get('spconv_cuda') is False:
        findings.problems.append(
            Problem(
                f'spconv is a CPU build, but torch sees {", ".join(devices["names"])}',
                'pip uninstall -y spconv cumm && pip install spconv-cu126==2.3.8',
            )
        )
