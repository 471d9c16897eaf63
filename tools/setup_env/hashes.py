# SPDX-License-Identifier: Apache-2.0
"""Sums of the pinned packages: what pip downloads can then be compared with what was tried."""

from collections.abc import Callable
from pathlib import Path

from installed import canonical, pins

HEAD = """\
# The sha256 of the wheel of every pin in constraints.txt, for Python 3.11 on Linux x86-64, as pip found it in its
# index. Made by `make lock`; not edited by hand. How to install nothing else than these files: docs/security.md.
"""


def read_hashes(path: Path) -> dict[str, tuple[str, str]]:
    """Read a file of hashes: {canonical name: (version, sha256)}; empty if there is none."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        if ' --hash=sha256:' in line:
            requirement, _, value = line.partition(' --hash=sha256:')
            name, _, version = requirement.partition('==')
            found[canonical(name)] = version, value.strip()
    return found


def write_hashes(constraints: Path, path: Path, ask: Callable[[list[str]], dict]) -> list[str]:
    """Write the sums of all pins; only what was not pinned in this version before is asked for.

    Args:
        constraints: File of pins.
        path: File to write.
        ask: Requirements -> pip's installation report (``pip install --dry-run --report``) of them.

    Returns:
        The requirements that were asked for.

    Raises:
        ValueError: The report lacks a package, or its sum; then the file stays as it is.
    """
    wanted, known = pins(constraints), read_hashes(path)
    kept = {name: known[name] for name, version in wanted.items() if known.get(name, ('',))[0] == version}
    asked = [f'{name}=={version}' for name, version in wanted.items() if name not in kept]
    for item in ask(asked)['install'] if asked else []:
        name, version = canonical(item['metadata']['name']), item['metadata']['version']
        value = item['download_info'].get('archive_info', {}).get('hashes', {}).get('sha256')
        if value:
            kept[name] = version, value
    lacking = [f'{name}=={version}' for name, version in wanted.items() if kept.get(name, ('',))[0] != version]
    if lacking:
        raise ValueError(f'pip gave no sha256 of {", ".join(lacking)}; {path.name} stays as it is')
    lines = [f'{name}=={kept[name][0]} --hash=sha256:{kept[name][1]}\n' for name in sorted(wanted)]
    part = path.with_suffix('.part')
    part.write_text(HEAD + ''.join(lines))
    part.replace(path)
    return asked
