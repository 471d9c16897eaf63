# SPDX-License-Identifier: Apache-2.0
"""The seed of a run decides the order of its data, in every config that is shipped."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmengine.config import Config
from mmengine.dataset import DefaultSampler

import clusterplug.registry  # noqa: F401 (mmengine learns where clusterplug:: is)
from clusterplug import compat

ROOT = Path(__file__).resolve().parents[2]
BASES = sorted((ROOT / 'configs/_base_/datasets').glob('*.py'))


@pytest.mark.parametrize('path', BASES, ids=lambda path: path.stem)
def test_no_sampler_has_a_seed_of_its_own(path):
    compat.apply_all()
    sampler = dict(Config.fromfile(path).get('train_dataloader', {}).get('sampler', {}))
    sampler.pop('type', None)
    # as the Runner does: its seed is a default, which a seed in the config would replace
    orders = [list(DefaultSampler(range(50), **{'seed': seed, **sampler})) for seed in (0, 1, 0)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_a_base_of_clusterplug_keeps_the_scope_that_it_names(tmp_path):
    compat.apply_all()
    name = 'clusterplug::point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
    (tmp_path / 'mine.py').write_text(f"_base_ = '{name}'\n")
    config = Config.fromfile(tmp_path / 'mine.py')
    assert '_scope_' not in config.visualizer
    assert config.default_scope == 'mmdet3d'
