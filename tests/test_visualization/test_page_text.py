# SPDX-License-Identifier: Apache-2.0
"""Pages show any title and name as text: nothing of a name ends the script or becomes markup."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from clusterplug.visualization.cluster_page import save_cluster_page
from clusterplug.visualization.cluster_views import ClusterView
from clusterplug.visualization.point_cloud_page import save_page

TEXTS = ['<!--<script>', '</script><b>', '<!--', 'a\nb\u2028c', 'caf\udce9', '&lt;{{data}}', '$x$ \\ {{title}}', '"\'`']


class Scripts(HTMLParser):
    """Collects what stands in script elements and what elements there are."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == 'script':
            self.scripts.append('')

    def handle_data(self, data):
        if self.tags and self.tags[-1] == 'script':
            self.scripts[-1] += data


def clusters(path, text):
    view = ClusterView(text, np.zeros((8, 8), np.int64), np.zeros((1, 2), np.int64))
    save_cluster_page(path, np.zeros((8, 8, 3), np.uint8), [view], title=text)


def points(path, text):
    colors = np.zeros((4, 3))
    save_page(path, np.zeros((4, 4)), [(text, colors)], title=text, legend=[(text, np.zeros(3))])


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('save', [clusters, points])
def test_any_text_stays_text(tmp_path, save, text):
    save(tmp_path / 'plain.html', 'plain')
    save(tmp_path / 'page.html', text)
    plain, page = Scripts(), Scripts()
    plain.feed((tmp_path / 'plain.html').read_text(encoding='utf-8'))
    content = (tmp_path / 'page.html').read_text(encoding='utf-8')
    page.feed(content)
    assert page.tags == plain.tags
    assert not re.search(r'<!--\s*<script', content, re.IGNORECASE)
    before, after = re.split('"plain"', plain.scripts[0], maxsplit=1)[0], page.scripts[0]
    assert after.startswith(before)
    title = json.JSONDecoder().raw_decode(after[len(before) :])[0]
    assert title == text
