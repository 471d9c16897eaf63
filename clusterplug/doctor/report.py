# SPDX-License-Identifier: Apache-2.0
"""The findings of the doctor as a table for people and as JSON for machines."""

import dataclasses
import json

__all__ = ['as_json', 'as_text']


def as_json(findings) -> str:
    """One JSON object with every finding, and ``ok``.

    Args:
        findings (Findings): What ``clusterplug.doctor.examine`` returned.

    Returns:
        str: Indented JSON.

    Example:
        >>> from clusterplug.doctor import Findings
        >>> '"ok": true' in as_json(Findings('3.11.7', 'Linux x86_64'))
        True
    """
    return json.dumps({'ok': findings.ok, **dataclasses.asdict(findings)}, indent=2)


def as_text(findings) -> str:
    """Tables of packages, devices, parts and workarounds, then the problems with their commands.

    Args:
        findings (Findings): What ``clusterplug.doctor.examine`` returned.

    Returns:
        str: Lines of plain text.

    Example:
        >>> from clusterplug.doctor import Findings
        >>> as_text(Findings('3.11.7', 'Linux x86_64')).splitlines()[-1]
        'No problems found.'
    """
    parts = [[part.name, part.state, part.detail] for part in findings.parts]
    workarounds = [[w['name'], w['host'], w['thread'] or '-', w['until']] for w in findings.workarounds]
    blocks = [
        _heading(findings),
        _packages(findings),
        _devices(findings.devices),
        _table(['part', 'state', 'detail'], parts),
        _table(['workaround', 'patches', 'thread', 'until'], workarounds),
        _problems(findings.problems),
    ]
    return '\n\n'.join(block for block in blocks if block)


def _heading(findings):
    from clusterplug.version import __version__

    return f'clusterplug {__version__} on Python {findings.python}, {findings.system}'


def _packages(findings):
    rows = []
    for package in findings.packages:
        if package.version is None:
            state = '-'
        elif not package.in_range:
            state = 'OUT OF RANGE'
        else:
            state = {True: 'ok', False: 'DOES NOT IMPORT', None: 'not tried'}[package.imports]
        rows.append([package.found, package.version or 'not installed', package.allowed, package.extra, state])
    return _table(['package', 'version', 'allowed', 'extra', 'import'], rows)


def _devices(devices):
    if not devices:
        return ''
    build = {True: 'CUDA', False: 'CPU', None: 'not installed'}
    gpu = ', '.join(devices['names']) if devices['cuda'] else 'none that torch can use'
    return '\n'.join(
        [
            f'CPU threads of torch: {devices["threads"]}',
            f'GPU: {gpu} (torch was built for CUDA {devices["cuda_of_torch"] or "none"})',
            f'build of spconv: {build[devices["spconv_cuda"]]}, of mmcv: {build[devices["mmcv_cuda"]]}',
        ]
    )


def _problems(problems):
    if not problems:
        return 'No problems found.'
    lines = [f'{len(problems)} problem{"s" if len(problems) > 1 else ""}:']
    for problem in problems:
        lines += [f'  - {problem.what}', f'    fix it with:  {problem.fix}']
    return '\n'.join(lines)


def _table(head, rows):
    if not rows:
        return ''
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head) - 1)]
    lines = [[*(f'{cell:<{width}}' for cell, width in zip(row, widths)), row[-1]] for row in [head, *rows]]
    return '\n'.join('  '.join(line).rstrip() for line in lines)
