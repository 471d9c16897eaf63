# SPDX-License-Identifier: Apache-2.0
"""What README and docs show in blocks is real: Python runs as it stands, commands name existing tools and options.

A block of Python runs in the namespace of its page, after the blocks above it, as a reader would paste them. Where it
needs what a test has not, an HTML comment says so to the readers of the source:

    <!-- setup: images = torch.zeros(1, 3, 64, 64) -->    runs first and stands in for what the reader has
    <!-- replace: pretrained=True -> pretrained=False -->  so that nothing is fetched
    <!-- slow -->                                          takes more than some seconds
    <!-- not run: needs weights of 600 MB -->              only compiled
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from command_lines import TOOLS, parser_of, with_subcommands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
BLOCK = re.compile(r'((?:^[ ]*<!--[^\n]*-->\n)*)^([ ]*)```(\w+)\n(.*?)^[ ]*```', re.MULTILINE | re.DOTALL)
MOST_NOT_RUN = 2


class Block(NamedTuple):
    """A block of a page."""

    page: str
    line: int
    marks: tuple
    language: str
    text: str

    def mark(self, name):
        """The texts of the comments ``name: text`` above the block."""
        return [mark[len(name) :].lstrip(': ') for mark in self.marks if re.match(rf'{name}\b', mark)]


def blocks_of(page):
    text, found = page.read_text(), []
    for match in BLOCK.finditer(text):
        comments, indent, language, body = match.groups()
        marks = tuple(mark.strip() for mark in re.findall(r'<!--(.*)-->', comments))
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        line = text.count('\n', 0, match.start(3)) + 1
        found.append(Block(page.relative_to(ROOT).as_posix(), line, marks, language, ''.join(lines)))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = {page: [b for b in BLOCKS if b.language == 'python' and b.page == page] for page in {b.page for b in BLOCKS}}
PYTHON = {page: blocks for page, blocks in sorted(PYTHON.items()) if blocks}
SHELL = [block for block in BLOCKS if block.language in ('bash', 'shell', 'sh', 'console')]
COMMAND = re.compile(r'(?:^|\s)(tools/[\w/]+\.(?:py|sh))(?=\s|$)')


def run(page, slow):
    """Run the blocks of a page in order; the slow ones only if asked for."""
    namespace = {'__name__': page}
    for block in PYTHON[page]:
        text = block.text
        for change in block.mark('replace'):
            old, new = change.split(' -> ')
            assert old in text, f'{block.page}:{block.line} has no {old}'
            text = text.replace(old, new)
        code = compile('\n' * block.line + text, block.page, 'exec')
        assert [kind for kind in re.findall(r"type='(clusterplug\.\w+)'", text) if not known(kind)] == []
        if block.mark('not run') or (block.mark('slow') and not slow):
            continue
        for line in block.mark('setup'):
            exec(line, namespace)
        if '_base_' in text:
            read_config(text)
        else:
            exec(code, namespace)


def read_config(text):
    """Read lines of a config with mmengine, bases of installed packages included."""
    mmengine = pytest.importorskip('mmengine', reason='needs mmengine')
    import clusterplug.registry  # noqa: F401

    return mmengine.Config.fromstring(text, '.py')


def known(kind):
    from clusterplug import registry

    tables = [value for value in vars(registry).values() if hasattr(value, 'get') and hasattr(value, 'module_dict')]
    return any(table.get(kind) is not None for table in tables)


def test_blocks_are_found():
    assert len(BLOCKS) > 40
    assert sum(block.language == 'python' for block in BLOCKS) > 20
    opened = sum(len(re.findall(r'^[ ]*```\w+$', page.read_text(), re.MULTILINE)) for page in PAGES)
    assert opened == len(BLOCKS)


def test_few_blocks_are_not_run_and_each_says_why():
    reasons = [reason for block in BLOCKS for reason in block.mark('not run')]
    assert all(len(reason) > 10 for reason in reasons)
    assert len(reasons) <= MOST_NOT_RUN
    known_marks = re.compile(r'(?:not run|setup|replace): \S|slow$')
    assert [mark for block in BLOCKS for mark in block.marks if not known_marks.match(mark)] == []


@pytest.mark.parametrize('page', [page for page in PYTHON if not all(b.mark('slow') for b in PYTHON[page])])
def test_python_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PYTHON if any(b.mark('slow') for b in PYTHON[page])])
def test_slow_python_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, slow=True)


def commands_of(text):
    """Return the commands of a block, continued lines joined, comments and words for the reader's own left out."""
    lines = re.sub(r'\\\n\s*', ' ', text).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith('#')]


def faults_of(line):
    """Return what a line names of this project's tools that does not exist."""
    found = COMMAND.search(line)
    module = re.search(r'python -m (clusterplug)\b', line)
    if not found and not module:
        return []
    name = found.group(1) if found else module.group(1)
    if found and not (ROOT / name).is_file():
        return [f'{name} does not exist']
    if name.endswith('.sh'):
        return []
    if found and name not in TOOLS:
        return [f'{name} is not looked at']
    parsers = with_subcommands(parser_of(name))
    known_options = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    words = shlex.split(line[(found or module).end() :].replace('[', ' ').replace(']', ' '), comments=True)
    named = [word.partition('=')[0] for word in words if word.startswith('-')]
    return [f'{name} has no {option}' for option in named if option not in known_options]


@pytest.mark.parametrize('block', SHELL, ids=[f'{block.page}:{block.line}' for block in SHELL])
def test_commands_of(block):
    assert [fault for line in commands_of(block.text) for fault in faults_of(line)] == []


def test_commands_that_do_not_exist_are_found():
    assert faults_of('python tools/train.py CONFIG --amp --cfg-options a.b=1') == []
    assert faults_of('python tools/train.py CONFIG [--amp] --ampp  # --no') == ['tools/train.py has no --ampp']
    assert faults_of('torchrun --nproc-per-node 4 tools/cluster_embeddings.py A B --num-clusters 9') == []
    assert faults_of('python tools/trian.py CONFIG') == ['tools/trian.py does not exist']
    assert faults_of('python tools/search_videos.py query V --config C "a -dog" --sheets x.png') == [
        'tools/search_videos.py has no --sheets'
    ]
    assert faults_of('.venv/bin/python -m clusterplug doctor --json') == []
    assert faults_of('python -m clusterplug doctor --jsn') == ['clusterplug has no --jsn']


def test_inline_commands_exist():
    tools = {
        name for page in PAGES for name in re.findall(r'`[^`\n]*?(tools/[\w/]+\.(?:py|sh))[^`\n]*`', page.read_text())
    }
    assert tools
    assert [name for name in sorted(tools) if not (ROOT / name).is_file()] == []
