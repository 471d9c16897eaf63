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
    # in a script element, only `</` could end what is a JSON string
    script = json.dumps(data).replace('</', '<\\/')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, encoding='utf-8') as file:
        file.writelines((head, html.escape(data['title']), middle, script, end))


def to_base64(array: np.ndarray) -> str:
    """Return the bytes of an array, row after row, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode('ascii')
