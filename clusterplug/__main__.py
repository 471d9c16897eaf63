# SPDX-License-Identifier: Apache-2.0
"""One command for all tools: ``clusterplug train CONFIG``, ``clusterplug doctor``; also ``python -m clusterplug``.

Every file of ``tools/`` is a command of its own name; the scripts stay as users of mm packages know them.
"""

import argparse
import ast
import difflib
import sys
import types
from pathlib import Path

__all__ = ['main']

# Short names, and the two that take the name of a data set as a second word.
_SHORT = {
    'search': 'search_videos',
    'cluster': 'cluster_embeddings',
    'generate lidar-city': 'prepare_lidar_city',
    'generate moving-sprites': 'prepare_moving_sprites',
}
_PACKAGE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: Words after ``clusterplug``; those of the process by default.

    Returns:
        int: 0 when all is well.

    Example:
        >>> main(['--version'])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        SystemExit: 0
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    tools = {} if not words or words[0] == 'doctor' else _tools()
    for length in (2, 1):
        command = ' '.join(words[:length])
        if len(words) >= length and command in tools:
            return _run(tools[command], command, words[length:])
    if words and not words[0].startswith('-') and words[0] != 'doctor':
        command = ' '.join(words[:2]) if words[0] in ('prepare', 'generate') else words[0]
        near = difflib.get_close_matches(command, [*tools, 'doctor'], 3, 0.5)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        print(f'clusterplug: there is no command {command!r}{hint}\n`clusterplug --help` lists all', file=sys.stderr)
        return 2
    parser = _parser()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 0
    from clusterplug.doctor import examine
    from clusterplug.doctor.report import as_json, as_text

    findings = examine()
    print(as_json(findings) if options.json else as_text(findings))
    return 0 if findings.ok else 1


def _run(path: Path, command: str, options: list[str]) -> int:
    """Run a script as if it had been started by its name; returns its exit code."""
    before = sys.argv, sys.modules['__main__'], list(sys.path)
    # runpy would put the path of the script in front of the words, and so into every usage line
    module = types.ModuleType('__main__')
    module.__file__ = str(path)
    sys.argv, sys.modules['__main__'] = [f'clusterplug {command}', *options], module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_text(encoding='utf-8'), str(path), 'exec'), vars(module))
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    finally:
        sys.argv, sys.modules['__main__'], sys.path[:] = before
    return 0


def _tools() -> dict[str, Path]:
    """{command: script}: of the wheel, or of the checkout that the package lies in."""
    folders = [_PACKAGE / '.mim' / 'tools', _PACKAGE.parent / 'tools']
    folder = next((each for each in folders if (each / 'train.py').is_file()), None)
    if folder is None:
        return {}
    scripts = [*sorted(folder.glob('*.py')), *sorted(folder.glob('analysis_tools/*.py'))]
    found = {_command(path.stem): path for path in scripts if not path.stem.startswith('_')}
    short = {name: found[_command(stem)] for name, stem in _SHORT.items() if _command(stem) in found}
    return {**found, **short}


def _command(stem: str) -> str:
    """``prepare_lidar_city`` -> ``prepare lidar-city``, ``token_pareto`` -> ``token-pareto``."""
    if stem.startswith('prepare_'):
        return 'prepare ' + stem.removeprefix('prepare_').replace('_', '-')
    return stem.replace('_', '-')


def _parser() -> argparse.ArgumentParser:
    from clusterplug.version import __version__

    parser = argparse.ArgumentParser(
        prog='clusterplug',
        description='Clustering inside vision models: commands of the package.',
        epilog=_list_of_tools(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    return parser


def _list_of_tools() -> str:
    rows = {}
    for command, path in _tools().items():
        text = (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').split('\n\n')[0]
        text = ' '.join(text.split()).replace('``', '').replace(f'python tools/{path.name}', 'clusterplug ' + command)
        rows[command] = text if len(text) <= 80 else text[:77] + '...'
    width = max(map(len, rows), default=0) + 2
    return '\n'.join(['tools:', *(f'  {name:<{width}}{rows[name]}' for name in sorted(rows))])


if __name__ == '__main__':
    sys.exit(main())
