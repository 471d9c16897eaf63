# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages: a template beside this file, filled with a title and JSON data."""

import base64
import html
import json
import os
from pathlib import Path

import numpy as np

from clusterplug.core.files import whole_file


def write_page(path: str | os.PathLike, template: str, data: dict) -> None:
    """Fill ``{{title}}`` and then ``{{data}}`` of a template and write the page, whole or not at all.

    Args:
        path: HTML file to write; missing folders are made.
        template: Name of a file beside this one.
        data: JSON values, ``title`` among them.
    """
    page = Path(__file__).with_name(template).read_text(encoding='utf-8')
    head, _, rest = page.partition('{{title}}')
    middle, _, end = rest.partition('{{data}}')
    # In a script element `</script` ends it and `<!--<script` hides its end, so no `<` of the data stands there.
    # json.dumps escapes what is no ASCII, a name of a file that is no UTF-8 too.
    script = json.dumps(data).replace('<', '\\u003c')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, encoding='utf-8') as file:
        file.writelines((head, html.escape(_printable(data['title'])), middle, script, end))


def _printable(text: str) -> str:
    return text.encode('utf-8', 'replace').decode('utf-8')


def to_base64(array: np.ndarray) -> str:
    """Return the bytes of an array, row after row, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode('ascii')
