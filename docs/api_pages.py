# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: one API page for each public package of clusterplug, made from its docstrings at build time.

Also the list of methods (docs/methods, by their titles), and an index of all public names with one line each.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

PACKAGE = Path(__file__).resolve().parents[1] / 'clusterplug'


def public_packages() -> list[str]:
    """Names of the packages that have something to document: an ``__init__`` with a docstring or ``__all__``."""
    folders = [file.parent for file in PACKAGE.glob('*/__init__.py') if not file.parent.name.startswith(('_', '.'))]
    return sorted(folder.name for folder in folders if (folder / '__init__.py').read_text().strip())


def on_config(config):
    """List the pages under API."""
    pages = [{f'clusterplug.{name}': f'api/{name}.md'} for name in public_packages()]
    config.nav[-1]['API'] = [{'Overview': 'api/index.md'}, {'All names': 'api/names.md'}, *pages]
    for entry in config.nav:
        if 'Methods' in entry:
            entry['Methods'] = [{title: f'methods/{name}'} for title, name in sorted(methods())]
    return config


def methods() -> list[tuple[str, str]]:
    """(title, file name) of the pages of the methods."""
    pages = Path(__file__).parent.glob('methods/*.md')
    return [(page.read_text(encoding='utf-8').splitlines()[0].removeprefix('# '), page.name) for page in pages]


def public_names(package: str) -> list[tuple[str, str]]:
    """(name, first sentence) of the public classes and functions whose source lies in a package."""
    rows = {}
    for file in sorted((PACKAGE / package).rglob('*.py')):
        if file.name.startswith('_') and file.name != '__init__.py':
            continue
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith('_'):
                text = (ast.get_docstring(node) or '').split('\n\n')[0]
                rows[node.name] = ' '.join(text.split()).replace('|', '\\|')
    faces = [file.read_text(encoding='utf-8') for file in (PACKAGE / package).rglob('__init__.py')]
    shown = {
        name for face in faces for name in re.findall(r"^\s*'(\w+)',?$|'(\w+)'", face, re.M) for name in name if name
    }
    return sorted((name, text) for name, text in rows.items() if name in shown)


def on_files(files, config):
    """Add the pages to what is built."""
    rows = []
    for name in public_packages():
        docstring = ast.get_docstring(ast.parse((PACKAGE / name / '__init__.py').read_text())) or ''
        page = f'# clusterplug.{name}\n\n::: clusterplug.{name}\n'
        files.append(File.generated(config, f'api/{name}.md', content=page))
        rows.append(f'| [clusterplug.{name}]({name}.md) | {docstring.splitlines()[0] if docstring else ""} |')
    table = '\n'.join(['| package | what it holds |', '|---|---|', *rows])
    files.append(File.generated(config, 'api/index.md', content=f'# API\n\n{table}\n'))
    lists = []
    for name in public_packages():
        if found := public_names(name):
            lines = [f'| `{each}` | {text} |' for each, text in found]
            lists.append('\n'.join([f'## clusterplug.{name}', '', '| name | what it is |', '|---|---|', *lines, '']))
    files.append(File.generated(config, 'api/names.md', content='# All names\n\n' + '\n'.join(lists)))
    return files
