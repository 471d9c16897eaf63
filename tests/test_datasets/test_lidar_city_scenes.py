# SPDX-License-Identifier: Apache-2.0
"""Streets that are asked for: their kind, objects, weather and sensor; and nothing changes where nothing is asked."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip('open3d')

from clusterplug.datasets import generate_lidar_city
from clusterplug.datasets.lidar_city.scanner.scan import Caster, sensor_pose
from clusterplug.datasets.lidar_city.scanner.weather import clutter, weakened
from clusterplug.datasets.lidar_city.world.catalogue import OUTLIER
from clusterplug.datasets.lidar_city.world.scene_settings import WEATHER, Weather, scene_settings
from clusterplug.datasets.lidar_city.world.street import build_street, plan_street

SETTINGS = dict(num_train=2, num_val=1, columns=32, scans_per_street=1, workers=1, progress=False)


def counts(**wishes):
    """Instances of a street by class and sub-type; 'moving' counts what moves."""
    found = {}
    for entry in plan_street(0, 0, 20.0, scene_settings(wishes)).instances:
        for key in (entry.class_name, entry.subtype, *['moving'] * entry.moving):
            found[key] = found.get(key, 0) + 1
    return found


def test_no_wish_is_the_city_as_it_was():
    text = ';'.join(f'{each.class_name}/{each.subtype}' for each in plan_street(3, 0, 5.0).instances)
    # of the generator before there were scenes: what changes this must raise GENERATOR
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == '315db04e4e62'


def test_every_wish_shows_in_the_street():
    plain = counts()
    less = counts(traffic='none', people='none', parked='none', greenery='bare', street='suburb')
    more = counts(traffic='dense', people='many', parked='full', objects='heavy', street='downtown')
    assert less.get('moving', 0) == 0 < plain['moving'] < more['moving']
    assert more['person'] > 1.5 * plain['person'] > 3 * less.get('person', 0)
    assert less['trunk'] < 0.4 * plain['trunk']
    assert more['truck'] > 1.5 * plain['truck']
    assert more['shop'] > plain['shop']
    assert 'shop' not in less
    assert counts(objects='two_wheelers')['motorcycle'] > 1.5 * plain['motorcycle']


@pytest.fixture(scope='module')
def scans():
    """One street seen in several weathers and by several sensors."""
    street = build_street(1, 0, 0.0)
    pose = sensor_pose(street, 1, 0, 0, 5.0)
    names = {name: (Caster(street, weather=weather), pose) for name, weather in WEATHER.items()}
    names['16'] = (Caster(street, beams=16), pose)
    names['high'] = (Caster(street), sensor_pose(street, 1, 0, 0, 5.0, 2.6))
    return {name: caster.scan(at, 0.0, 128, np.random.default_rng(0)) for name, (caster, at) in names.items()}


def test_weather_takes_far_points_and_adds_near_ones(scans):
    far = {name: np.linalg.norm(scan.points[:, :3], axis=1) > 25 for name, scan in scans.items()}
    stray = {name: ((scan.labels & 0xFFFF) == OUTLIER).mean() for name, scan in scans.items()}
    assert far['fog'].sum() < 0.25 * far['clear'].sum()
    assert far['fog'].sum() < far['snow'].sum() < far['rain'].sum() < far['clear'].sum()
    assert stray['clear'] < 0.001
    assert stray['snow'] > 0.03
    assert stray['rain'] > 0.005
    for scan in scans.values():
        distance = np.linalg.norm(scan.points[:, :3], axis=1)
        assert np.isfinite(scan.points).all()
        assert distance.min() > 1.99
        assert distance.max() < 80.1
        assert len(scan.points) == len(scan.labels)


def test_sensor_height_and_beams(scans):
    ground = {name: np.isin(scan.labels & 0xFFFF, (40, 44, 48, 60)) for name, scan in scans.items()}
    low = {name: np.median(scan.points[ground[name], 2]) for name, scan in scans.items()}
    assert low['high'] == pytest.approx(low['clear'] - 0.87, abs=0.25)
    assert 0.2 < len(scans['16'].points) / len(scans['clear'].points) < 0.3


def test_the_equations_of_the_air():
    air = Weather(extinction=0.05, clutter=0.5, reach=1.0, wet=0.5)
    flat = weakened(np.ones(2, np.float32), np.zeros(2, np.float32), np.array([-0.05, 0.1], np.float32), air)
    assert flat.dtype == np.float32
    assert flat.tolist() == [0.5, 1.0]
    drop, shown = clutter(np.full(20000, 3.0), np.ones(20000, bool), air, np.random.default_rng(0))
    # half of the pulses meet a drop; it is in front of a wall at 3 m with probability 1 - exp(-1)
    assert drop.mean() == pytest.approx(0.5 * (1 - np.exp(-1)), abs=0.02)
    assert shown[drop].max() < 3.0
    empty, _ = clutter(np.full(20000, 3.0), np.zeros(20000, bool), air, np.random.default_rng(0))
    assert empty.mean() == pytest.approx(0.5, abs=0.02)


def test_scenes_of_a_city(tmp_path):
    scenes = [{'weather': 'fog', 'beams': 16}, {'traffic': 'dense'}]
    city = generate_lidar_city(tmp_path / 'a', train_scenes=scenes, **SETTINGS)
    found = json.loads((city / 'lidar_city.json').read_text())
    assert found['train_scenes'][0] == scene_settings(scenes[0])._asdict()
    assert 'val_scenes' not in found
    sizes = [(city / f'sequences/{s:02d}/velodyne/000000.bin').stat().st_size for s in (0, 1, 8)]
    assert sizes[0] < 0.3 * sizes[2]
    with pytest.raises(FileExistsError, match='train_scenes'):
        generate_lidar_city(city, train_scenes=scenes[::-1], **SETTINGS)


@pytest.mark.parametrize(
    ('scenes', 'error', 'text'),
    [
        ([{}], ValueError, 'one entry a street, 2, got 1'),
        ({}, TypeError, 'list of dicts'),
        ([{}, 3], TypeError, r'train_scenes\[1\] must be a dict'),
        ([{}, {'wether': 'fog'}], ValueError, "did you mean 'weather'"),
        ([{}, {'weather': 'hail'}], ValueError, "'clear', 'rain'"),
        ([{}, {'traffic': 'dens'}], ValueError, "did you mean 'dense'"),
        ([{}, {'traffic': -1}], ValueError, '>= 0'),
        ([{}, {'sensor_height': float('nan')}], ValueError, 'finite'),
        ([{}, {'beams': 33}], ValueError, '64, 32, 16'),
    ],
)
def test_bad_scenes(tmp_path, scenes, error, text):
    with pytest.raises(error, match=text):
        generate_lidar_city(tmp_path / 'city', train_scenes=scenes, **SETTINGS)
    assert not (tmp_path / 'city').exists()
