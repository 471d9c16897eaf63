# SPDX-License-Identifier: Apache-2.0
"""What the tools that write files share: one name for one option, checked numbers, exit codes."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ['add_counts', 'add_out', 'add_splits', 'exit_code', 'number', 'parse', 'tool_parser', 'whole_number']


class _ToolParser(argparse.ArgumentParser):
    needs_out = False  # whether the tool ends without a place to write


def tool_parser(description: str | None, **options) -> _ToolParser:
    """Return a parser whose help shows ``description``, the docstring of the tool, line by line."""
    return _ToolParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


class _Out(argparse.Action):
    """Keep the path; refuse a second one."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values is None:  # the word without a name is not there
            return
        if getattr(namespace, self.dest, None) not in (None, values):
            parser.error(f'one place to write, please: got {getattr(namespace, self.dest)} and {values}')
        setattr(namespace, self.dest, values)


def add_out(parser: _ToolParser, text: str, *, required: bool = True) -> None:
    """Add ``--out``, where a tool writes; with ``required`` also as the last word without its name.

    Args:
        parser: Of the tool; read it with :func:`parse`.
        text: What it is, with the default where it is not required.
        required: Whether the tool needs it.

    Example:
        >>> parser = tool_parser('Write.')
        >>> add_out(parser, 'folder to write')
        >>> parse(parser, ['--out', 'a']).out, parse(parser, ['a']).out
        (PosixPath('a'), PosixPath('a'))
    """
    needed = ' (required; no default)' if required else ''
    parser.add_argument('--out', type=Path, action=_Out, help=text + needed)
    if required:
        parser.add_argument('out', metavar='OUT', nargs='?', type=Path, action=_Out, help='the same as --out')
        parser.needs_out = True


def add_counts(parser: argparse.ArgumentParser, defaults: Mapping[str, int], what: str, **others: str) -> None:
    """Add ``--num-train``, ``--num-val`` or ``--num-test``: how many of each split are made.

    Args:
        parser: Of the tool.
        defaults: Split -> number.
        what: Of what, ``'scans'``.
        **others: Split -> an older name of the option that still works, ``train='--train'``.

    Example:
        >>> parser = tool_parser('Generate.')
        >>> add_counts(parser, dict(train=160, val=40), 'scans')
        >>> parse(parser, ['--num-val', '3'])
        Namespace(num_train=160, num_val=3)
    """
    words = dict(train='training', val='validation', test='test')
    for split, number_of in defaults.items():
        parser.add_argument(
            f'--num-{split}', *filter(None, [others.get(split)]), dest=f'num_{split}', type=int, default=number_of,
            help=f'{words[split]} {what} (default: %(default)s)',
        )  # fmt: skip


def add_splits(parser: argparse.ArgumentParser, texts: Mapping[str, str], metavar: str) -> None:
    """Add ``--train``, ``--val`` and ``--test``: which samples that exist belong to each split.

    Args:
        parser: Of the tool.
        texts: Split -> help, with the default.
        metavar: What is named, ``'SCANS'``.
    """
    for split, text in texts.items():
        parser.add_argument(f'--{split}', nargs='+', metavar=metavar, help=text)


def parse(parser: _ToolParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line whose last word may stand between options; without a needed ``--out`` the tool ends."""
    args = parser.parse_intermixed_args(arguments)
    if parser.needs_out and args.out is None:
        parser.error('the following arguments are required: --out')
    return args


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return the ``type`` of an option that is a whole number from ``low`` to ``high``.

    Example:
        >>> whole_number(0, 51)('23')
        23
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f'must be a whole number between {low} and {high}, got {text!r}')
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """Return the ``type`` of an option that is a number from ``low`` to ``high``.

    Example:
        >>> number(0.01, 1000)('2.5')
        2.5
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'must be a number between {low:g} and {high:g}, got {text!r}')
        return value

    return convert


def exit_code(
    run: Callable[[], int],
    *,
    name: str = 'error',
    interrupted: str = 'the same command goes on',
    show: Callable[[str], str] = str,
) -> int:
    """Run a tool; what its user can resolve becomes one sentence and exit code 1, Ctrl-C 130.

    Args:
        run: Does the work and returns the exit code.
        name: What the sentence begins with.
        interrupted: What is said after Ctrl-C.
        show: How the text of an error is printed.

    Returns:
        That of ``run``, 1 or 130.
    """
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
    try:
        return run()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f'{name}: {show(str(error))}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'stopped; {interrupted}', file=sys.stderr)
        return 130
