# SPDX-License-Identifier: Apache-2.0
"""Runs probes in a process of their own; a probe that crashes it costs nobody else's result."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ['ProbeResult', 'run_probes']


@dataclass
class ProbeResult:
    """Outcome of one probe."""

    ok: bool = False
    error: str = ''
    value: Any = None


def run_probes(names: list[str], patience: float = 300) -> dict[str, ProbeResult]:
    """Try imports and small computations.

    Args:
        names: ``'import MODULE'`` or a function of ``clusterplug.doctor.probes``.
        patience: Seconds until a process that says nothing more is ended.

    Returns:
        dict[str, ProbeResult]: One result for each name.

    Example:
        >>> run_probes(['import json'])['import json'].ok
        True
    """
    results, left = {}, list(names)
    while left:
        answers, error = _start(left, patience)
        results.update(answers)
        left = [name for name in left if name not in results]
        if left:  # the first without an answer is the one that ended the process
            results[left[0]] = ProbeResult(error=error)
            left = left[1:]
    return results


def _start(names, patience):
    """Answers of one process, and how it ended."""
    command = [sys.executable, '-m', 'clusterplug.doctor.probes', *names]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=patience, stdin=subprocess.DEVNULL)
        output = process.stdout
        last = (process.stderr.strip().splitlines() or [''])[-1]
        error = f'the process ended with code {process.returncode}: {last}'[:300]
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b'').decode()
        error = f'no answer within {patience:.0f} s'
    answers = {}
    for line in output.splitlines():
        if line.startswith('probe: '):
            entry = json.loads(line[len('probe: ') :])
            answers[entry['name']] = ProbeResult(entry['ok'], entry['error'], entry['value'])
    return answers, error
