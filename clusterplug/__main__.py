# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m clusterplug doctor`` (or ``clusterplug doctor``)."""

import argparse
import sys

__all__ = ['main']


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments (list[str]): Words after ``clusterplug``; those of the process by default.

    Returns:
        int: 0 when all is well.

    Example:
        >>> main(['--version'])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        SystemExit: 0
    """
    from clusterplug.version import __version__

    parser = argparse.ArgumentParser(
        prog='python -m clusterplug', description='Clustering inside vision models: commands of the package.'
    )
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(
        dest='command', metavar='COMMAND', help='what to run; COMMAND --help lists its options'
    )
    doctor = commands.add_parser(
        'doctor',
        help='versions, allowed ranges, devices, which parts work, and the command that fixes what does not',
        description='Exit code 0: the core works and nothing that is installed is broken or out of range; else 1.',
    )
    doctor.add_argument('--json', action='store_true', help='print one JSON object instead of tables')
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0

    from clusterplug.doctor import examine
    from clusterplug.doctor.report import as_json, as_text

    findings = examine()
    print(as_json(findings) if options.json else as_text(findings))
    return 0 if findings.ok else 1


if __name__ == '__main__':
    sys.exit(main())
