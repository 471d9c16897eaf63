# SPDX-License-Identifier: Apache-2.0
"""The parsers of all command lines, taken at the moment in which they would read their words."""

import argparse
import contextlib
import runpy
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('tools', 'tools/analysis_tools', 'tools/model_converters')
TOOLS = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).glob('[!_]*.py'))]


class _Reached(BaseException):
    pass


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a tool's file, or of a module that ``python -m`` runs, without running more of it."""
    found = []

    def stop(self, *args, **kwargs):
        found.append(self)
        raise _Reached

    before = {name: getattr(argparse.ArgumentParser, name) for name in ('parse_args', 'parse_known_args')}
    words, path = sys.argv, list(sys.path)
    try:
        for name in before:
            setattr(argparse.ArgumentParser, name, stop)
        sys.argv = [command]
        with contextlib.suppress(_Reached):
            file = command if command.endswith('.py') else f'{command}/__main__.py'
            runpy.run_path(str(ROOT / file), run_name='__main__')
    finally:
        for name, function in before.items():
            setattr(argparse.ArgumentParser, name, function)
        sys.argv, sys.path[:] = words, path
    assert found, f'{command} reads no command line'
    return found[0]


def with_subcommands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and those of its subcommands."""
    inner = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(each for choices in inner for child in choices for each in with_subcommands(child))]
