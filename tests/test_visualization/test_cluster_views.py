# SPDX-License-Identifier: Apache-2.0
"""Clusters over an image: composition, colors, representatives, the page with a slider, the three-colour image."""

import base64
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterplug.backbones import FEC
from clusterplug.functional import clustering_accuracy
from clusterplug.visualization import cluster_views, paint_clusters, save_cluster_page, save_cluster_panels

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools' / 'view_fec.py'
COLORS = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 200]])


def three_colors(size=224, noise=0.05, seed=0):
    """(H, W, 3) uint8 of three flat regions and noise, and which region each pixel lies in."""
    generator = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size] / size
    regions = np.where(column + 0.3 * row < 0.45, 0, np.where((row - 0.4) ** 2 + (column - 0.75) ** 2 < 0.05, 1, 2))
    image = COLORS[regions] / 255 + noise * generator.standard_normal((size, size, 3))
    return (255 * image.clip(0, 1)).astype(np.uint8), regions


def model_of(seed=0):
    torch.manual_seed(seed)
    return FEC('small').eval()


def as_input(image):
    return (torch.tensor(image).permute(2, 0, 1)[None] / 255 - 0.45) / 0.225


def test_an_untrained_model_finds_three_colors():
    for seed in range(3):
        image, regions = three_colors(seed=seed)
        view = cluster_views(model_of(seed), as_input(image), num_groups=3)[-1]
        assert view.name == '3 groups'
        found = clustering_accuracy(torch.tensor(view.labels).flatten(), torch.tensor(regions).flatten())
        assert float(found) >= 0.95, seed
        # the pixel that stands for a group lies in it
        assert [view.labels[row, column] for row, column in view.marks] == [0, 1, 2]


def test_pixels_are_followed_from_layer_to_layer():
    model, x = model_of(), torch.randn(1, 3, 64, 96)
    views = {view.name: view for view in cluster_views(model, x)}
    assert len(views) == 3 * 4 + 4 * 4 + 5 * 8 + 2 * 8 + 3
    with torch.no_grad():
        layers = {layer.name: layer.clusters for layer in model.clusters(x)}
    places = np.arange(16 * 24)
    for name in ('pool 1', 'pool 2', 'pool 3'):
        places = layers[name].labels[0, 0].flatten().numpy()[places]
        labels = views[name].labels
        assert labels.shape == (64, 96)
        # the same clusters by other names, and every pixel in exactly one
        pairs = set(zip(labels[::4, ::4].flatten().tolist(), places.tolist()))
        assert len(pairs) == labels.max() + 1 == len(set(places.tolist())) == len(views[name].marks)
    assert len(views['pool 3'].marks) <= 6
    block = layers['stage 2 block 1'].labels[0, 1].flatten().numpy()
    first = layers['pool 1'].labels[0, 0].flatten().numpy()
    pairs = set(zip(views['stage 2 block 1, head 2'].labels[::4, ::4].flatten().tolist(), block[first].tolist()))
    assert len(pairs) == len(views['stage 2 block 1, head 2'].marks)


def test_sizes_that_do_not_divide():
    views = cluster_views(model_of(), torch.randn(1, 3, 50, 37), num_groups=50)
    assert all(view.labels.shape == (50, 37) for view in views)
    for view in views:
        assert view.labels.min() == 0
        assert view.labels.max() + 1 == len(view.marks)
        assert (view.marks < [50, 37]).all()
        assert (view.marks >= 0).all()


def test_colors():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 100
    labels = np.array([[0, 1], [0, 1]])
    assert paint_clusters(image, labels, 'mean', alpha=1).tolist() == [[[50] * 3] * 2] * 2
    assert paint_clusters(image, labels, alpha=0).tolist() == image.tolist()
    distinct = paint_clusters(image, labels, alpha=1)
    assert distinct[0, 0].tolist() == distinct[1, 0].tolist() != distinct[0, 1].tolist()
    with pytest.raises(ValueError, match='labels must have the size of the image'):
        paint_clusters(image, labels[:1])
    with pytest.raises(ValueError, match="colors must be 'distinct' or 'mean'"):
        paint_clusters(image, labels, 'grey')
    with pytest.raises(ValueError, match='image must be'):
        paint_clusters(image / 255, labels)


def test_bad_input(tmp_path):
    model = model_of()
    with pytest.raises(ValueError, match=r'image must have shape \(1, channels'):
        cluster_views(model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match='num_groups must be at least 1'):
        cluster_views(model, torch.zeros(1, 3, 32, 32), 0)
    with pytest.raises(ValueError, match='at least one view'):
        save_cluster_page(tmp_path / 'x.html', np.zeros((4, 4, 3), np.uint8), [])
    with pytest.raises(ValueError, match='must have the size of the image'):
        save_cluster_page(
            tmp_path / 'x.html', np.zeros((4, 4, 3), np.uint8), cluster_views(model, torch.zeros(1, 3, 8, 8))
        )
    assert not list(tmp_path.iterdir())


def test_page_holds_everything(tmp_path):
    image, _ = three_colors(96)
    views = cluster_views(model_of(), as_input(image), 3)
    save_cluster_page(tmp_path / 'page.html', image, views, title='a <b> </script>')
    page = (tmp_path / 'page.html').read_text()
    data = json.loads(re.search(r'^const data = (.*);$', page, re.MULTILINE)[1])
    assert [view['name'] for view in data['views']] == [view.name for view in views]
    labels = np.frombuffer(base64.b64decode(data['views'][-1]['labels']), '<u2').reshape(24, 24)
    np.testing.assert_array_equal(labels.repeat(4, 0).repeat(4, 1), views[-1].labels)
    assert base64.b64decode(data['image']) == image.tobytes()
    assert page.count('</script>') == 1
    assert 'http' not in page
    assert '{{' not in page


def test_tool(tmp_path, capsys):
    picture = pytest.importorskip('PIL.Image', reason='needs pillow')
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    image, _ = three_colors(96)
    picture.fromarray(image[..., 0]).save(tmp_path / 'grey.png')
    main = runpy.run_path(str(TOOL))['main']
    weights = tmp_path / 'weights.pth'
    torch.save(model_of().state_dict(), weights)
    assert main([str(tmp_path / 'grey.png'), str(weights), '--size', '64', '--out', str(tmp_path / 'out')]) == 0
    files = capsys.readouterr().out.split()
    assert [Path(file).name for file in files] == ['grey.html', 'grey.png']
    assert picture.open(files[1]).size[0] > 600
    assert main(['demo', '--size', '64', '--out', str(tmp_path / 'demo')]) == 0
    assert (tmp_path / 'demo' / 'demo.html').is_file()
    with pytest.raises(SystemExit, match='view_fec: '):
        main([str(tmp_path / 'none.png'), '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit, match='arch must be one of small, base, large'):
        main([str(tmp_path / 'grey.png'), '--arch', 'tiny'])


def test_demo_picture():
    from clusterplug.visualization.demo_picture import demo_picture

    assert np.array_equal(demo_picture(64), demo_picture(64))
    assert len(np.unique(demo_picture(224).reshape(-1, 3) // 64, axis=0)) > 8
    with pytest.raises(ValueError, match='size must be at least 16'):
        demo_picture(8)


def test_panels(tmp_path):
    picture = pytest.importorskip('PIL.Image', reason='needs pillow')
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    image, _ = three_colors(64)
    views = cluster_views(model_of(), as_input(image), 3)[-2:]
    save_cluster_panels(tmp_path / 'panels.png', image, views, columns=3, alpha=1)
    pixels = np.asarray(picture.open(tmp_path / 'panels.png').convert('RGB')).astype(int)
    assert pixels.shape[1] == 900
    hues = paint_clusters(image, views[-1].labels, alpha=1).reshape(-1, 3)
    for color in np.unique(hues, axis=0):
        assert (np.abs(pixels - color).max(2) < 6).sum() > 300


@pytest.mark.slow
def test_a_browser_draws_it(tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('needs Chromium: apt-get install chromium')
    picture = pytest.importorskip('PIL.Image')
    image, regions = three_colors(224)
    views = cluster_views(model_of(), as_input(image), 3)
    save_cluster_page(tmp_path / 'page.html', image, views, title='three colors')
    command = [
        browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--no-first-run', f'--user-data-dir={tmp_path / "profile"}',
        '--window-size=800,1000', '--virtual-time-budget=4000',
    ]  # fmt: skip
    page = f'{(tmp_path / "page.html").as_uri()}#{len(views) - 1}'
    dom = subprocess.run([*command, '--dump-dom', page], capture_output=True, text=True, timeout=240)
    assert 'data-state="ready"' in dom.stdout, dom.stderr[-2000:]
    assert 'data-view="3 groups"' in dom.stdout
    shot = tmp_path / 'picture.png'
    subprocess.run([*command, f'--screenshot={shot}', page], capture_output=True, timeout=240, check=True)
    pixels = np.asarray(picture.open(shot).convert('RGB')).astype(int)
    painted = paint_clusters(image, views[-1].labels, alpha=0.6).astype(int)
    # the flat color of each region, mixed with that of its group, covers its share of the canvas of 736 x 736
    for region in range(3):
        color = np.median(painted[regions == region], axis=0)
        share = (regions == region).mean() * 736 * 736 / pixels[..., 0].size
        assert (np.abs(pixels - color).max(2) < 40).mean() > 0.5 * share
