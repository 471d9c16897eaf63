# SPDX-License-Identifier: Apache-2.0
"""The documentation builds without a warning, works offline, and names every system."""

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    pytest.importorskip('mkdocs', reason='documentation tools are not installed: make docs')
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-q', '-d', str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site):
    pages = list(site.rglob('*.html'))
    assert len(pages) > 10
    elements = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\ssrc="(?:https?:)?//')
    sheets = re.compile(r'<link\b[^>]*\srel="stylesheet"[^>]*//')
    assert [str(page) for page in pages for what in (elements, sheets) if what.search(page.read_text())] == []
    loads = re.compile(r'url\(["\']?(?:https?:)?//|@import')
    assert [str(style) for style in site.rglob('*.css') if loads.search(style.read_text())] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('node') is None, reason='needs node, which runs the scripts of the pages')
def test_search_works_where_pages_are_opened_as_files(site):
    """A file may not start the worker of the theme's search: its shim of our own, the worker and the index together."""
    script = Path(__file__).with_name('search_from_files.js')
    done = subprocess.run(['node', script, site, 'householder projector'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert any(location.startswith('methods/householder.html') for location in found), found
    page = (site / 'methods' / 'householder.html').read_text()
    assert '<script src="../javascripts/iframe-worker.js">' in page


@pytest.mark.slow
def test_every_public_package_has_its_page(site):
    packages = [path.parent.name for path in (ROOT / 'clusterplug').glob('*/__init__.py') if path.read_text().strip()]
    assert 'losses' in packages
    assert 'PointClusterLoss' in (site / 'api' / 'losses.html').read_text()
    for package in packages:
        assert f'clusterplug.{package}' in (site / 'api' / f'{package}.html').read_text()


def test_the_table_of_systems_is_complete():
    rows = re.findall(r'^\| (\d\d) \|(.*)\|$', (ROOT / 'docs' / 'systems.md').read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 33))
    for number, row in rows:
        title, venue, kind, state, code, config = (cell.strip() for cell in row.split('|'))
        assert title, number
        assert venue, number
        assert kind, number
        assert state in ('done', 'in progress', 'planned'), number
        for name in re.findall(r'`(clusterplug(?:\.\w+)+)`', code):
            package, _, leaf = name.rpartition('.')
            module = importlib.import_module(package)
            there = hasattr(module, leaf) or importlib.util.find_spec(name) is not None
            assert there, f'{number}: {name}'
        for name in re.findall(r'`(tools/[\w/]+\.py)`|\((methods/\w+\.md)\)', code):
            assert (ROOT / name[0]).is_file() if name[0] else (ROOT / 'docs' / name[1]).is_file(), f'{number}: {name}'
        for name in re.findall(r'`(configs/\w+)/`', config):
            assert state == 'planned' or (ROOT / name).is_dir(), f'{number}: {name}'


def test_links_between_documents_lead_somewhere():
    for document in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        for link in re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', document.read_text()):
            if not re.match(r'https?://|api/', link):
                assert (document.parent / link).exists(), f'{document.name}: {link}'


def headings(page):
    """Anchors of a page, as mkdocs makes them of its headings."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    plain = (re.sub(r'[^\w\s-]', '', title).strip().lower() for title in re.findall(r'^#+ (.*)$', text, re.MULTILINE))
    return {re.sub(r'[-\s]+', '-', title) for title in plain}


def test_links_into_pages_lead_to_a_heading():
    found = 0
    for document in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        for page, anchor in re.findall(r'\]\(([^)#\s:]*)#([^)\s]+)\)', document.read_text()):
            target = document.parent / page if page else document
            if target.exists():  # pages of the API are made later
                assert anchor in headings(target), f'{document.name}: {page}#{anchor}'
                found += 1
    assert found > 5


def missing_scripts(text, folder):
    """Scripts that a text names and a folder lacks, and scripts of the folder that it does not name."""
    named = set(re.findall(r'\bbenchmarks[/.](\w+)(?:\.py|:)', text))
    present = {path.stem for path in folder.glob('*.py')}
    return named - present, {name for name in present if not name.startswith('_')} - named


def test_every_benchmark_is_named_and_every_named_one_exists():
    assert missing_scripts((ROOT / 'docs' / 'benchmarks.md').read_text(), ROOT / 'benchmarks') == (set(), set())
    for document in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        absent, _ = missing_scripts(document.read_text(), ROOT / 'benchmarks')
        assert not absent, f'{document.name}: {absent}'


def test_missing_benchmarks_are_found(tmp_path):
    for name in ('fast.py', 'unnamed.py', '_part.py'):
        (tmp_path / name).touch()
    text = '`benchmarks/fast.py run`, `benchmarks/gone.py` and `benchmarks.other:model`'
    assert missing_scripts(text, tmp_path) == ({'gone', 'other'}, {'unnamed'})


def test_tools_and_configs_that_the_documents_name_exist():
    for document in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        for name in re.findall(r'(?<![\w/])((?:tools|configs|tests)/[\w./-]+\.(?:py|sh))\b', document.read_text()):
            assert (ROOT / name).exists(), f'{document.name}: {name}'


def test_the_page_of_benchmarks_has_the_marks_that_scripts_write_between():
    text = (ROOT / 'docs' / 'benchmarks.md').read_text()
    for script in (ROOT / 'benchmarks').glob('*.py'):
        for name in re.findall(r"publish\(\w+(?:\.\w+)*, '(\w+)'", script.read_text()):
            assert text.count(f'<!-- {name}: begin -->') == text.count(f'<!-- {name}: end -->') == 1, script.name


def test_every_option_of_make_that_the_documents_name_exists():
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for document in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        named = set(re.findall(r'(?:^|`)make ([a-z-]+)', document.read_text(), re.MULTILINE))
        assert named <= targets, document.name


def test_docstrings_are_translated(monkeypatch):
    pytest.importorskip('griffe', reason='documentation tools are not installed: make docs')
    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    from docstrings import translate

    docstring = (
        'See :class:`~clusterplug.memory.SubclassMemory` and :func:`torch.sum`.\n\n'
        '.. math:: a = b\n\n    c = d\n\nAfter.\n\nExample:\n    >>> 1\n'
    )
    assert translate(docstring) == (
        'See `SubclassMemory` and `torch.sum`.\n\n'
        '\n```text\na = b\nc = d\n```\n\nAfter.\n\nExamples:\n    >>> 1'
    )  # fmt: skip


def reached(name):
    """Return whether a dotted name leads somewhere, as a reader would import it."""
    parts = name.split('.')
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return known_type(name)
            value = getattr(value, part)
        return True
    return False


def known_type(name):
    """Return whether a name is a registered type, as configs write it."""
    from clusterplug import registry

    tables = [value for value in vars(registry).values() if hasattr(value, 'module_dict')]
    return any(table.get(name) is not None for table in tables)


def test_every_dotted_name_in_the_documents_can_be_reached():
    pytest.importorskip('mmdet3d', reason='needs mmdet3d')
    names = set()
    for document in [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *(ROOT / 'docs').rglob('*.md')]:
        names |= set(re.findall(r'(?<![\w./-])(clusterplug(?:\.[A-Za-z_]\w*)+)(?![\w/:])', document.read_text()))
    names = {name for name in names if not name.endswith(('.mim', '.X'))}
    assert len(names) > 40
    assert sorted(name for name in names if not reached(name)) == []


@pytest.mark.parametrize(
    'name', ['README.md', 'CHANGELOG.md', 'docs/index.md', 'docs/getting_started.md', 'docs/systems.md']
)  # fmt: skip
def test_the_first_pages_speak_one_english(name):
    words = r'neighbour|colour|normalis|centre|\bgrey|\bmend|\bwished|\bbeside\b|made anew|left out|stand still|licence'
    assert re.findall(words, (ROOT / name).read_text(), re.IGNORECASE) == []


def test_a_name_that_leads_nowhere_is_found():
    assert reached('clusterplug.estimators.KMeans')
    assert not reached('clusterplug.estimators.KMeanz')
    assert not reached('clusterplug.estimator.KMeans')
