# SPDX-License-Identifier: Apache-2.0
"""tools/train.py and tools/test.py: mmdet3d's options, early and clear errors, whole runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d')

from clusterplug import cli
from clusterplug.testing import tiny_config, write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_scans=4, num_points=1500)


@pytest.fixture
def config_file(tmp_path, data_root):
    config = tiny_config(tmp_path / 'work', data_root, max_epochs=1)
    config.default_hooks.visualization = dict(type='Det3DVisualizationHook')
    config.visualizer = dict(
        type='Det3DLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
    )
    config.log_level = 'INFO'
    config.tta_model = dict(type='Seg3DTTAModel')
    flips = [
        dict(type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=ratio, flip_ratio_bev_vertical=0.0)
        for ratio in (0.0, 1.0)
    ]
    packing = [dict(type='Pack3DDetInputs', keys=['points'])]
    config.tta_pipeline = [
        *config.test_dataloader.dataset.pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, packing])
    ]  # fmt: skip
    path = tmp_path / 'tiny.py'
    config.dump(path)
    return path


def options_of(module_path):
    """The option strings that a tool of mmdet3d declares."""
    import re

    text = module_path.read_text()
    return set(re.findall(r"'(--[\w-]+)'", text.partition('parse_args()')[2].partition('return args')[0]))


@pytest.mark.parametrize('name', ['train', 'test'])
def test_every_option_of_mmdet3d_is_there(name, capsys):
    import mmdet3d

    theirs = options_of(Path(mmdet3d.__file__).parent / f'.mim/tools/{name}.py')
    assert '--cfg-options' in theirs
    with pytest.raises(SystemExit):
        getattr(cli, f'run_{name}')(['--help'])
    shown = capsys.readouterr().out
    assert not {option for option in theirs if option not in shown}


def test_configs_are_found_by_path_and_by_package():
    name = 'minkunet/minkunet34_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti.py'
    assert Path(cli.find_config(f'mmdet3d::{name}')).is_file()
    ours = 'point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
    assert Path(cli.find_config(f'clusterplug::{ours}')).is_file()
    assert cli.find_config(str(ROOT / 'configs' / ours)) == str(ROOT / 'configs' / ours)


@pytest.mark.parametrize(
    ('name', 'error', 'words'),
    [
        ('mmdet3d::minkunet/minkunet18_w16.py', FileNotFoundError, 'nearest: mmdet3d::minkunet/minkunet18_w16_torch'),
        (str(ROOT / 'configs/point_cluster/minkunet18_w8.py'), FileNotFoundError, 'nearest: .*minkunet18_w8_spconv'),
        ('no_such_package::a.py', ModuleNotFoundError, 'no_such_package, which is not installed'),
        ('nowhere/at_all.py', FileNotFoundError, 'no config nowhere/at_all.py'),
    ],
)
def test_a_config_that_does_not_exist(name, error, words):
    with pytest.raises(error, match=words):
        cli.find_config(name)


def test_options_reach_the_config(config_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    built = []

    class Stop(Exception):
        pass

    def build(config):
        built.append(config)
        raise Stop

    monkeypatch.setattr(cli, 'build_runner', build)
    (tmp_path / 'a.pth').write_bytes(b'')
    train = [str(config_file), '--amp', '--sync_bn', 'torch', '--resume', 'a.pth', '--launcher', 'pytorch']
    pytest.raises(Stop, cli.run_train, [*train, '--cfg-options', 'train_cfg.max_epochs=7', 'a.b=[1,2]'])
    config = built.pop()
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.loss_scale == 'dynamic'
    assert (config.sync_bn, config.resume, config.load_from, config.launcher) == ('torch', True, 'a.pth', 'pytorch')
    assert (config.train_cfg.max_epochs, config.a.b) == (7, [1, 2])
    pytest.raises(Stop, cli.run_train, [str(config_file), '--resume', '--work-dir', 'elsewhere'])
    config = built.pop()
    assert (config.resume, config.load_from, config.work_dir) == (True, None, 'elsewhere')
    test = [str(config_file), 'a.pth', '--show-dir', 'pictures', '--tta', '--score-thr', '0.3']
    pytest.raises(Stop, cli.run_test, test)
    config = built.pop()
    hook = config.default_hooks.visualization
    assert (hook.draw, hook.draw_gt, hook.test_out_dir, hook.vis_task) == (True, True, 'pictures', 'lidar_seg')
    assert hook.score_thr == 0.3
    assert config.model.type == 'Seg3DTTAModel'
    assert config.model.module.type == 'MinkUNet'
    assert config.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--resume', 'no.pth'], 'CKPT|--resume must be a checkpoint file, got no.pth'),
        (['--auto-scale-lr'], 'needs auto_scale_lr='),
        (['--amp', '--cfg-options', 'optim_wrapper.type=Other'], 'needs optim_wrapper.type OptimWrapper.*got Other'),
    ],
)
def test_wrong_options_fail_before_anything_is_built(config_file, arguments, words, monkeypatch):
    monkeypatch.setattr(cli, 'build_runner', lambda config: pytest.fail('built'))
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        cli.run_train([str(config_file), *arguments])
    with pytest.raises(FileNotFoundError, match=r'CKPT must be a checkpoint file, got no\.pth'):
        cli.run_test([str(config_file), 'no.pth'])


def test_the_work_dir_is_named_after_the_config(config_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = config_file.read_text().replace(f"work_dir = '{tmp_path / 'work'}'", '')
    config_file.write_text(text)
    assert cli.load_config(str(config_file)).work_dir == 'work_dirs/tiny'


def run(*command, **options):
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable)
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, **options)


@pytest.mark.slow
def test_train_then_test_with_pictures_and_augmentation(config_file, tmp_path):
    done = run(sys.executable, ROOT / 'tools/train.py', config_file, '--amp', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / 'work/epoch_1.pth'
    assert checkpoint.is_file()
    command = [sys.executable, ROOT / 'tools/test.py', config_file, checkpoint]
    done = run(*command, '--show-dir', 'pictures', '--tta', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'miou' in done.stdout
    pictures = sorted(path.name for path in (tmp_path / 'work').glob('*/pictures/*.png'))
    assert pictures == ['08_000000.png', '08_000001.png']
    done = run(*command, '--show', '--show-dir', 'pictures', cwd=tmp_path)  # no display: a warning, no crash
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_by_the_shell_script(config_file, tmp_path):
    done = run('bash', ROOT / 'tools/dist_train.sh', config_file, 2, '--work-dir', tmp_path / 'two')
    assert done.returncode == 0, done.stderr[-3000:]
    done = run('bash', ROOT / 'tools/dist_test.sh', config_file, tmp_path / 'two/epoch_1.pth', 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('| classes |') == 1  # one table, from rank 0


@pytest.mark.slow
def test_control_c_keeps_the_last_checkpoint_and_resume_goes_on(config_file, tmp_path):
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config_file), '--cfg-options']
    # A run that a shell starts in the background ignores the signal, and so would what it starts.
    endless = subprocess.Popen(
        [*command, 'train_cfg.max_epochs=100000'], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    last = tmp_path / 'work/last_checkpoint'
    deadline = time.monotonic() + 200
    try:
        while not last.is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        endless.send_signal(signal.SIGINT)
        _, errors = endless.communicate(timeout=60)
    finally:
        endless.kill()
    assert endless.returncode == 130, errors[-3000:]
    assert 'go on with --resume' in errors
    epoch = int(Path(last.read_text()).stem.removeprefix('epoch_'))
    done = run(*command, f'train_cfg.max_epochs={epoch + 1}', '--resume')
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / f'work/epoch_{epoch + 1}.pth').is_file()
