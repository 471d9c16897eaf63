# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: one API page for each public package of clusterplug, made from its docstrings at build time."""

import ast
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
    config.nav[-1]['API'] = [{'Overview': 'api/index.md'}, *pages]
    return config


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
    return files
