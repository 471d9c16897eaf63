# SPDX-License-Identifier: Apache-2.0
"""Configs of DatasetEquity: the base's model, weighted by the file that the tool writes."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from mmengine.registry import init_default_scope

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.estimators import SampleLikelihood
from clusterplug.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted((CONFIGS / 'dataset_equity').glob('*.py')), ids=lambda path: path.stem)
def test_config_is_its_base_with_weights(path, tmp_path, monkeypatch):
    compat.apply_all()
    init_default_scope('mmdet3d')
    config = load_config(str(path), work_dir=str(tmp_path))
    name = path.name.removeprefix('dataset-equity_')
    base = load_config(str(CONFIGS / 'point_cluster' / name), work_dir=str(tmp_path))
    assert config.model.model == base.model
    assert config.train_dataloader == base.train_dataloader
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)):  # the file is not there yet
        MODELS.build(config.model)
    file = Path(config.model.likelihood)
    file.parent.mkdir(parents=True)
    SampleLikelihood.from_labels([0, 0, 1], ids=['a', 'b', 'c']).save(file, key='lidar_path')
    model = MODELS.build(config.model)
    assert model.sample_weighting.key == 'lidar_path'
