# SPDX-License-Identifier: Apache-2.0
"""The page that turns: what it holds, and that a browser draws it."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from clusterplug.visualization import save_page


def _scan(num_points=4000):
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (num_points, 3)) * [1, 1, 0.05]
    red, green = np.full((num_points, 3), (250, 20, 20)), np.full((num_points, 3), (20, 250, 20))
    return points, [('truth', red), ('subclasses', green)]


def _data(path):
    return json.loads(re.search(r'^const data = (.*);$', path.read_text(), re.MULTILINE)[1])


def test_holds_all_points_and_colors_and_asks_for_nothing_else(tmp_path):
    points, colorings = _scan()
    points[7, 0] = np.nan
    save_page(tmp_path / 'page.html', points, colorings, title='a <b> </script>', legend=[('car', (1, 2, 3))])
    data = _data(tmp_path / 'page.html')
    kept = np.frombuffer(base64.b64decode(data['points']), '<f4').reshape(-1, 3)
    np.testing.assert_allclose(kept, np.delete(points, 7, 0), rtol=1e-6)
    assert [name for name, _ in data['colorings']] == ['truth', 'subclasses']
    colors = np.frombuffer(base64.b64decode(data['colorings'][1][1]), np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(colors, colorings[1][1][1:])
    assert data['legend'] == [['car', 'rgb(1, 2, 3)']]
    assert data['title'] == 'a <b> </script>'
    page = (tmp_path / 'page.html').read_text()
    assert page.count('</script>') == 1
    assert 'http' not in page
    assert '{{' not in page


def test_bad_input(tmp_path):
    points, colorings = _scan()
    with pytest.raises(ValueError, match='at least one'):
        save_page(tmp_path / 'x.html', points, [])
    with pytest.raises(ValueError, match="colors of 'truth' must have shape"):
        save_page(tmp_path / 'x.html', points[1:], colorings)
    assert list(tmp_path.iterdir()) == []


def test_no_points(tmp_path):
    save_page(tmp_path / 'none.html', np.zeros((0, 3)), [('truth', np.zeros((0, 3)))])
    assert _data(tmp_path / 'none.html')['points'] == ''


@pytest.mark.slow
def test_a_browser_draws_it(tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('needs Chromium: apt-get install chromium')
    image_module = pytest.importorskip('PIL.Image')
    save_page(tmp_path / 'page.html', *_scan(), title='scan')
    command = [
        browser, '--headless', '--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader',
        '--enable-unsafe-swiftshader', '--disable-background-networking', '--disable-component-update',
        '--disable-sync',
        '--no-first-run', f'--user-data-dir={tmp_path / "profile"}', '--window-size=640,480',
        '--virtual-time-budget=4000',
    ]  # fmt: skip
    page = (tmp_path / 'page.html').as_uri()
    dom = subprocess.run([*command, '--dump-dom', page], capture_output=True, text=True, timeout=240)
    assert 'data-state="ready"' in dom.stdout, dom.stderr[-2000:]
    assert 'data-coloring="truth"' in dom.stdout
    picture = tmp_path / 'picture.png'
    subprocess.run([*command, f'--screenshot={picture}', page], capture_output=True, timeout=240, check=True)
    pixels = np.asarray(image_module.open(picture).convert('RGB')).astype(int)
    # points of the first coloring cover a fair part of the picture, and none of the second is there
    assert (np.abs(pixels - (250, 20, 20)).max(2) < 40).mean() > 0.003
    assert (np.abs(pixels - (20, 250, 20)).max(2) < 40).mean() == 0
