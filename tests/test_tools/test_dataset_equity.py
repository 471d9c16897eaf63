# SPDX-License-Identifier: Apache-2.0
"""The tool on KITTI's layout: features of the model, goes on after a stop, the training split alone, bad input."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet3d')
pytest.importorskip('sklearn')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.datasets.kitti_convert import prepare_kitti
from clusterplug.estimators import SampleLikelihood
from clusterplug.testing.toy_detectors import tiny_detector_config
from clusterplug.testing.toy_kitti import write_tiny_kitti

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / 'configs/point_cluster/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('dataset_equity', ROOT / 'tools/dataset_equity.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    compat.apply_all()
    root = tmp_path_factory.mktemp('kitti')
    write_tiny_kitti(root, num_points=2000, radius=15.0)
    prepare_kitti(root, root, dict(train=['000000', '000001', '000003'], val=['000002']))
    made = tiny_detector_config(load_config(str(HOST), work_dir=str(root)), root)
    made.dump(root / 'config.py')
    return str(root / 'config.py')


@pytest.mark.slow
def test_features_of_the_model(tool, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, '_PART', 2)
    arguments = [config, '--out', str(tmp_path), '--cluster', 'knn', '--reducer', 'none', '--n-neighbors', '1']
    assert tool.main(arguments) == 0
    assert '3 samples' in capsys.readouterr().out
    found = SampleLikelihood.load(tmp_path / 'likelihood.json')
    assert found.ids_ == [f'training/velodyne_reduced/{name}.bin' for name in ('000000', '000001', '000003')]
    assert found.key_ == 'lidar_path'
    for name in ('scatter', 'likelihood', 'rarest', 'commonest'):
        assert (tmp_path / f'{name}.png').stat().st_size > 1000
    # goes on: the first part is there, the second is made again, with the same numbers
    first, second = sorted((tmp_path / 'features').glob('part_*'))
    before, kept = np.load(second)['features'], first.stat().st_mtime_ns
    second.unlink()
    monkeypatch.setattr(tool, 'draw_pictures', lambda *args: None)
    assert tool.main(arguments) == 0
    assert np.array_equal(np.load(second)['features'], before)
    assert first.stat().st_mtime_ns == kept
    assert SampleLikelihood.load(tmp_path / 'likelihood.json').to_dict() == found.to_dict()
    # other settings in the same folder would mix features
    assert tool.main([*arguments, '--layer', 'backbone']) == 1
    assert 'other settings' in capsys.readouterr().err
    assert tool.main([config, '--out', str(tmp_path / 'x'), '--layer', 'nek', '--no-pictures']) == 1
    assert '--layer' in capsys.readouterr().err
    assert tool.main([config, '--out', str(tmp_path / 'x'), '--embedder', 'nonsense', '--no-pictures']) == 1
    assert 'timm' in capsys.readouterr().err


@pytest.mark.slow
def test_camera_images(tool, config, tmp_path, capsys, monkeypatch):
    pytest.importorskip('timm')
    image = pytest.importorskip('PIL.Image')
    folder = Path(config).parent / 'training/image_2'
    folder.mkdir(exist_ok=True)
    arguments = [config, '--embedder', 'resnet18', '--size', '64', '--key', 'sample_idx', '--cluster', 'kmeans',
                 '--n-clusters', '2', '--n-components', '2', '--no-pictures']  # fmt: skip
    for old in folder.glob('*.png'):
        old.unlink()
    assert tool.main([*arguments, '--out', str(tmp_path / 'none')]) == 1
    assert 'no camera image on disk' in capsys.readouterr().err
    # two dark streets and a bright one, which is the rare one; files name no folder
    for name, light in (('000000', 20), ('000001', 26), ('000003', 230)):
        noise = np.random.default_rng(int(name)).integers(0, 8, (60, 200, 3))
        image.fromarray((light + noise).astype(np.uint8)).save(folder / f'{name}.png')
    assert tool.main([*arguments, '--out', str(tmp_path / 'a')]) == 0
    assert SampleLikelihood.load(tmp_path / 'a/likelihood.json').to_dict() == {
        0: 1.0,
        1: 1.0,
        2: 0.5,
    }
    # elsewhere, by --image-root; a sample_idx is the position in the data set
    folder.rename(tmp_path / 'elsewhere')
    assert tool.main([*arguments, '--out', str(tmp_path / 'b'), '--image-root', str(tmp_path / 'elsewhere')]) == 0
    features = [np.load(next((tmp_path / name / 'features').glob('*.npz')))['features'] for name in 'ab']
    assert features[0].shape == (3, 512)
    assert np.array_equal(*features)


@pytest.mark.slow
def test_real_frames(tool, real_data, tmp_path, capsys):
    pytest.importorskip('timm')
    compat.apply_all()
    frames = real_data / 'kitti'
    prepare_kitti(frames, tmp_path / 'kitti', dict(train=['000000', '000001', '000002', '000003'], val=['000008']))
    made = load_config(str(ROOT / 'configs/point_cluster/pointpillars_hv_secfpn_1xb2-150e_kitti-frames.py'))
    for split in ('train', 'val', 'test'):
        made[f'{split}_dataloader'].dataset.data_root = str(tmp_path / 'kitti')
    made.dump(tmp_path / 'config.py')
    arguments = [str(tmp_path / 'config.py'), '--cluster', 'knn', '--n-neighbors', '1', '--reducer', 'none']
    for out, more in (('scans', []), ('images', ['--embedder', 'resnet18', '--size', '64'])):
        assert tool.main([*arguments, '--out', str(tmp_path / out), *more]) == 0
        assert '4 samples, density by 1 neighbors' in capsys.readouterr().out
        found = SampleLikelihood.load(tmp_path / out / 'likelihood.json').to_dict()
        assert len(found) == 4
        assert max(found.values()) == 1
        assert 0 < min(found.values()) < 1
