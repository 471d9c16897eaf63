# SPDX-License-Identifier: Apache-2.0
"""latent_directions: a diffusion model trained by its config for some steps, a user's generator, bad words."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('matplotlib')

import clusterplug
from clusterplug.cli import build_runner, load_config
from clusterplug.datasets.sprite_frames import SpriteFrames
from clusterplug.layers import DenoisingUNet
from clusterplug.visualization import save_image_grid

ROOT = Path(clusterplug.__file__).parents[1]
CONFIG = ROOT / 'configs' / 'subspace_diffusion' / 'denoiser_unet-w16_1xb32-2000_sprites.py'


def tool():
    spec = importlib.util.spec_from_file_location('latent_directions', ROOT / 'tools' / 'latent_directions.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(folder, iters):
    config = load_config(str(CONFIG), work_dir=str(folder))
    config.model.denoiser.width = 8
    config.train_dataloader.update(batch_size=4)
    config.train_dataloader.dataset.update(num_images=16, size=16)
    config.train_cfg.max_iters, config.default_hooks.checkpoint.interval = iters, 2
    config.default_hooks.checkpoint.max_keep_ckpts = 3
    config.experiment_name = f'tiny_{iters}'
    return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Two steps, and two more after a resume."""
    folder = tmp_path_factory.mktemp('sprites')
    build_runner(tiny(folder / 'run', 2)).train()
    config = tiny(folder / 'run', 4)
    config.resume, config.load_from = True, str(folder / 'run' / 'iter_2.pth')
    build_runner(config).train()
    tiny(folder, 4).dump(folder / 'tiny.py')
    return folder


@pytest.mark.slow
def test_config_trains_and_resumes(trained):
    first, last = (torch.load(trained / 'run' / f'iter_{n}.pth', weights_only=False) for n in (2, 4))
    assert last['meta']['iter'] == 4
    assert first['state_dict'].keys() == last['state_dict'].keys()
    assert any(not torch.equal(value, first['state_dict'][name]) for name, value in last['state_dict'].items())
    assert all(torch.isfinite(value).all() for value in last['state_dict'].values())


@pytest.mark.slow
def test_grid_of_a_diffusion_model(trained, capsys):
    out = trained / 'grid.png'
    words = ['--config', str(trained / 'tiny.py'), '--checkpoint', str(trained / 'run' / 'iter_4.pth')]
    more = ['--shape', '3', '16', '16', '--rank', '2', '--steps', '-3', '0', '3', '--levels', '8', '--out', str(out)]
    assert tool().main([*words, *more]) == 0
    assert out.read_bytes()[:4] == b'\x89PNG'
    assert 'direction 1: changes' in capsys.readouterr().out
    assert tool().main([*words, *more, '--region', '0', '8', '0', '16', '--null-rank', '4']) == 0
    assert 'outside' in capsys.readouterr().out


def test_generator_of_the_user(tmp_path, monkeypatch, capsys):
    (tmp_path / 'my_generator.py').write_text(
        'import torch\n'
        'def make():\n'
        '    torch.manual_seed(0)\n'
        '    return torch.nn.Sequential(torch.nn.Linear(6, 48), torch.nn.Tanh(), torch.nn.Unflatten(1, (3, 4, 4)))\n'
    )
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'folder' / 'grid.png'
    words = ['--generator', 'my_generator:make', '--shape', '6', '--rank', '3', '--out', str(out)]
    assert tool().main(words) == 0
    assert out.is_file()
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith('direction')]) == 3
    for bad in (
        ['--generator', 'my_generator:make'],
        ['--generator', 'my_generator', '--shape', '6'],
        ['--generator', 'my_generator:no', '--shape', '6'],
        ['--generator', 'no_such:make', '--shape', '6'],
        [*words[:4], '--rank', '7'],
        [*words, '--region', '0', '9', '0', '9'],
        [],
    ):
        with pytest.raises(SystemExit) as stop:
            tool().main(bad)
        assert stop.value.code not in (0, None)


def test_frames():
    data = SpriteFrames(5, 16, seed=1)
    assert len(data) == 5
    assert data[0]['inputs'].dtype == torch.uint8
    assert torch.equal(data.images, SpriteFrames(5, 16, seed=1).images)
    assert not torch.equal(data.images, SpriteFrames(5, 16, seed=2).images)
    with pytest.raises(ValueError, match='size must be'):
        SpriteFrames(5, 8)


def test_network():
    torch.manual_seed(0)
    net = DenoisingUNet(3, 8)
    x, levels = torch.randn(2, 3, 8, 12), (torch.tensor([0.6, 1.0]), torch.tensor([0.8, 1e-4]))
    start = net(x, *levels)
    # nothing is learned yet: the linear estimate, and at no noise the input
    torch.testing.assert_close(start[0], 0.6 * 0.25 / (0.36 * 0.25 + 0.64) * x[0])
    torch.testing.assert_close(start[1], x[1], rtol=1e-4, atol=1e-5)
    (net(x, *levels) - 1).square().sum().backward()
    assert net.last[2].weight.grad.abs().sum() > 0
    assert torch.isfinite(net(x, torch.zeros(2), torch.ones(2))).all()
    for bad in (torch.zeros(2, 3, 6, 8), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(ValueError, match='x must be'):
            net(bad, *levels)
    with pytest.raises(ValueError, match='width must be'):
        DenoisingUNet(3, 6)


def test_image_grid(tmp_path):
    image = np.zeros((3, 4, 4))
    save_image_grid(tmp_path / 'grid.png', [[image, image], [image, image + np.nan]], ['a', 'b'], ['c', 'd'])
    assert (tmp_path / 'grid.png').is_file()
    for images, names, message in (
        ([], [], 'equal length'),
        ([[image], []], [], 'equal length'),
        ([[image[:2]]], [], 'must have shape'),
        ([[image]], ['a', 'b'], 'row_names'),
    ):
        with pytest.raises(ValueError, match=message):
            save_image_grid(tmp_path / 'bad.png', images, names)
    assert not (tmp_path / 'bad.png').exists()
