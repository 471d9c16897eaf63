# SPDX-License-Identifier: Apache-2.0
"""Texts of users are drawn as they are: no dollar, backslash or underscore is read as mathematics."""

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='needs matplotlib: pip install clusterplug[vis]')

from matplotlib.text import Text

from clusterplug.visualization import cluster_page, memory_figures, panels, retrieval_figures, token_figures
from clusterplug.visualization._text import plain
from clusterplug.visualization.cluster_views import ClusterView
from clusterplug.visualization.point_cloud_page import save_page

TEXTS = (
    r'he pays $5\x and gets $3 back',
    r'$a_{$',
    r'\frac{',
    '_{x}',
    '$$',
    '$\\',
    '50 % & #1 ~ ^2',
    'a\nb\tc',
    '\ud83d?',
    '\x07',
)
PICTURE, FRAMES = np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
ONE = np.ones((1, 2), bool)


def draw(name, path, text):
    """Draw with ``text`` wherever a user gives one."""
    if name == 'sheet':
        retrieval_figures.save_contact_sheet(path, [text], [[(text, 0.5, PICTURE)]])
    elif name == 'kept':
        retrieval_figures.save_kept_tokens(path, FRAMES, np.array([[0]]), (2, 2), [(0, 2)], title=text)
    elif name == 'similarity':
        retrieval_figures.save_similarity_map(path, np.eye(3), title=text)
    elif name == 'tokens':
        token_figures.save_token_panels(path, [(text, np.eye(4))])
    elif name == 'clusters':
        view = ClusterView(text, np.zeros((8, 8), int), np.array([[1, 1]]))
        cluster_page.save_cluster_panels(path, PICTURE, [view])
    elif name == 'sizes':
        memory_figures.save_sizes(path, np.ones((1, 2)), ONE, [text])
    elif name == 'centers':
        memory_figures.save_center_map(path, np.ones((1, 2, 3)), np.ones((1, 2)), ONE, [text])
    elif name == 'curves':
        memory_figures.save_curves(path, {text: ([0, 1], [1.0, 2.0])})
    else:
        panels.save_panels(
            path, np.zeros((1, 3)), [(text, np.zeros((1, 3), np.uint8))], legend=[(text, np.zeros(3))], size=80
        )


@pytest.mark.parametrize(
    'name', ['sheet', 'kept', 'similarity', 'tokens', 'clusters', 'sizes', 'centers', 'curves', 'panels']
)  # fmt: skip
@pytest.mark.filterwarnings('ignore')  # letters that the font lacks
def test_every_text_is_drawn_and_none_is_read_as_mathematics(name, tmp_path, monkeypatch):
    drawn = []
    render = Text.draw

    def spy(self, renderer):
        drawn.append((self.get_text(), self.get_parse_math(), self.get_usetex()))
        return render(self, renderer)

    monkeypatch.setattr(Text, 'draw', spy)
    for text in TEXTS:
        drawn.clear()
        draw(name, tmp_path / 'x.png', text)
        shown = plain(text, 18)
        own = [entry for entry in drawn if shown[:10] in entry[0] and shown.strip('?')]
        assert own or not shown.strip('?'), (text, drawn)
        assert all(not math and not tex for _, math, tex in own), text
    assert (tmp_path / 'x.png').stat().st_size > 500


def test_one_line_of_printable_characters():
    assert plain('a\n  b\tc\u2028d') == 'a b c d'
    assert plain('\ud83d\x00x') == '??x'
    assert plain('x' * 100, 10) == 'x' * 9 + '…'


@pytest.mark.parametrize('name', ['sizes', 'centers', 'panels'])
def test_misspelt_classes_of_the_host_are_drawn_right(name, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Text, 'set_text', lambda self, text, old=Text.set_text: (drawn.append(text), old(self, text)))
    draw(name, tmp_path / 'x.png', 'terrian')
    assert 'terrain' in drawn
    if name != 'panels':  # there the same text is a heading too, which is the user's
        assert 'terrian' not in drawn


def test_misspelt_classes_of_the_host_stand_right_on_the_page(tmp_path):
    save_page(tmp_path / 'x.html', np.zeros((1, 3)), [('a', np.zeros((1, 3)))], legend=[('trunck', np.zeros(3))])
    text = (tmp_path / 'x.html').read_text()
    assert '"trunk"' in text
    assert 'trunck' not in text
