# SPDX-License-Identifier: Apache-2.0
"""tools/synthesize.py: a kill loses nothing, budgets, balance, scans of the LiDAR city."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clusterplug.datasets.synthesis import AttributeGenerator, LidarCityGenerator, PartitionTree

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'synthesize.py'
TRAINING = ROOT / 'configs/synthesis/minkunet18_w8_spconv_1xb1-5e_lidar-city-tree.py'
SLOW = """
import itertools
import os
import time

calls = itertools.count()

def wait():
    if next(calls) >= int(os.environ.get('HANGS_AFTER', 1000)):
        time.sleep(600)
    time.sleep(0.02)

def samples(desc, n, rng):
    wait()
    return [dict(desc, number=int(rng.integers(1000))) for _ in range(n)]

def pivots(desc, n, rng):
    wait()
    return [dict({'color': 'rgb'[i % 3], 'size': i % 4}, **desc) for i in range(n)]
"""
CONFIG = """
tree = dict(max_depth=2, n_pivots=6, seed=4)
generator = dict(
    type='CallableGenerator',
    samples='slow_things:samples',
    pivots='slow_things:pivots',
    attributes=dict(color=['r', 'g', 'b'], size=[0, 1, 2, 3]),
)
n_per_leaf = 4
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / 'slow_things.py').write_text(SLOW)
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / 'config.py'


def tool():
    spec = importlib.util.spec_from_file_location('synthesize_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder):
    tree = json.loads((folder / 'tree.json').read_text())
    return (folder / 'samples.jsonl').read_text(), (folder / 'tree.txt').read_text(), tree['root']


def keys(folder):
    lines = [json.loads(line) for line in (folder / 'journal.jsonl').read_text().splitlines()]
    return [line.get('call') for line in lines]


def test_a_killed_tool_goes_on_without_loss(config, tmp_path, capsys):
    assert tool().main([str(config), '--out', str(tmp_path / 'whole')]) == 0
    out, journal = tmp_path / 'out', tmp_path / 'out' / 'journal.jsonl'
    command = [sys.executable, str(TOOL), str(config), '--out', str(out), '--workers', '2']
    hanging = dict(os.environ, HANGS_AFTER='18')  # so that it cannot end before it is killed
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=hanging)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (journal.exists() and journal.read_bytes().count(b'\n') > 13):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = journal.read_bytes().count(b'\n')
    assert 13 < kept < len(keys(tmp_path / 'whole'))
    assert tool().main(command[2:]) == 0
    assert results(out) == results(tmp_path / 'whole')
    assert len(keys(out)) == len(set(keys(out))) == len(keys(tmp_path / 'whole'))
    assert '48 samples in 12 leaves (evenness 1.000, 0 leaves not full)' in capsys.readouterr().out
    report = json.loads((out / 'report.json').read_text())
    assert (report['leaves'], report['samples'], report['smallest'], report['missing']) == (12, 48, 4, {})
    assert '<details' in (out / 'tree.html').read_text()


def test_budget_estimate_and_balance(config, tmp_path, capsys):
    main, out = tool().main, str(tmp_path / 'out')
    assert main([str(config), '--estimate', '3.5']) == 0
    assert json.loads(capsys.readouterr().out)['grow'] == 14
    assert main([str(config), '--out', out, '--budget', '5']) == 3
    captured = capsys.readouterr()
    assert 'budget of 5 calls is used up' in captured.err
    assert main([str(config), '--out', out]) == 0
    rows = tmp_path / 'rows.jsonl'
    drawn = AttributeGenerator({'color': list('rgb'), 'size': [0, 1, 2, 3]}).draw(60, np.random.default_rng(0))
    rows.write_text('\n'.join(map(json.dumps, [*drawn, {'color': 'violet', 'size': 1}])))
    arguments = [str(config), '--out', out, '--rebalance', str(rows), '--n-per-leaf', '6']
    assert main(arguments) == 0
    report = json.loads(Path(out, 'report.json').read_text())
    assert (report['samples'], report['dropped'], report['evenness']) == (72, 1, pytest.approx(1.0))
    assert main([*arguments, '--no-fill']) == 0
    lines = [json.loads(line) for line in Path(out, 'samples.jsonl').read_text().splitlines()]
    assert all(line['sample'] == drawn[line['source']] for line in lines)
    rows.write_text('{"a": 1}\n{')
    assert main(arguments) == 1
    assert 'line 2' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('text', 'arguments', 'said'),
    [
        ('trees = dict()', ['--out', 'x'], "did you mean 'tree'"),
        ('generator = dict(type="Nobody")', ['--out', 'x'], 'LidarCityGenerator'),
        ('tree = dict(max_depth=-1)', ['--out', 'x'], 'max_depth'),
        ('tree = dict()', [], '--out must be'),
        ('tree = dict(max_dept=1)', ['--out', 'x'], 'max_dept'),
    ],
)
def test_bad_configs(tmp_path, capsys, monkeypatch, text, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(text)
    assert tool().main(['config.py', *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_config_of_the_city_covers_every_condition():
    content = tool().read_config(str(ROOT / 'configs/synthesis/lidar-city_weather-tree.py'))
    tree = PartitionTree(**content['tree']).grow(generator := LidarCityGenerator())
    found = tree.generate(generator, content['n_per_leaf'])
    assert len(tree.leaves) == len(found.samples) == 4 * 3 * 3 * 3
    names = ('weather', 'street', 'sensor_height', 'objects')
    assert len({tuple(sample[name] for name in names) for sample in found.samples}) == 108
    assert {sample['beams'] for sample in found.samples} == {64, 32, 16}
    training = TRAINING.read_text() + (ROOT / 'configs/_base_/datasets/lidar-city-tree.py').read_text()
    assert '--out data/lidar_city_tree\n' in training
    assert "data_root = 'data/lidar_city_tree/city/'" in training
    captions = tool().read_config(str(ROOT / 'configs/synthesis/captions_chat-tree.py'))
    assert captions['generator']['chat']['type'] == 'ChatEndpoint'


@pytest.mark.slow
def test_scans_of_a_tree(tmp_path, capsys):
    pytest.importorskip('open3d')
    config = tmp_path / 'config.py'
    config.write_text(
        'tree = dict(max_depth=1, n_pivots=4)\n'
        "generator = dict(type='LidarCityGenerator', attributes=dict(weather=['clear', 'fog'], beams=[16]))\n"
        'n_per_leaf = 1\n'
        "city = dict(columns=32, progress=False, val_scenes=[dict(weather='fog')])\n"
    )
    arguments = [str(config), '--out', str(tmp_path / 'out'), '--city-workers', '1']
    assert tool().main(arguments) == 0
    marker = json.loads((tmp_path / 'out/city/lidar_city.json').read_text())
    assert sorted(scene['weather'] for scene in marker['train_scenes']) == ['clear', 'fog']
    assert marker['val_scenes'][0]['weather'] == 'fog'
    scans = sorted((tmp_path / 'out/city').glob('sequences/*/velodyne/*.bin'))
    before = {path: path.stat().st_mtime_ns for path in scans}
    assert len(scans) == 3
    assert tool().main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in scans} == before
    assert 'scans: ' in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_trains_on_the_scans_of_a_tree(tmp_path):
    pytest.importorskip('open3d')
    pytest.importorskip('mmdet3d')
    from mmengine.runner import Runner

    from clusterplug import compat
    from clusterplug.cli import load_config
    from clusterplug.datasets.synthesis import write_lidar_city

    compat.apply_all()
    scenes = LidarCityGenerator({'weather': ['clear', 'fog']})
    made = PartitionTree(1, n_pivots=4).grow(scenes).generate(scenes, 1).samples
    city = write_lidar_city(made, tmp_path / 'city', columns=64, progress=False, workers=1)
    options = {f'{split}_dataloader.dataset.data_root': str(city) for split in ('train', 'val', 'test')}
    options |= {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 2}
    config = load_config(str(TRAINING), options, str(tmp_path / 'run'))
    config.experiment_name = 'tree'
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 2
    assert (tmp_path / 'run/epoch_1.pth').is_file()
