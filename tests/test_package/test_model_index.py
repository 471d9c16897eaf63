# SPDX-License-Identifier: Apache-2.0
"""model-index.yml and the metafiles that it names: what mmengine and mim read."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_index_names_every_metafile():
    named = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml'))


def test_every_family_of_configs_has_a_metafile_and_a_readme():
    families = {path.parent for path in ROOT.glob('configs/[a-z]*/*.py')}
    assert [str(family) for family in families if not (family / 'metafile.yml').is_file()] == []
    assert [str(family) for family in families if not (family / 'README.md').is_file()] == []


def test_every_model_of_a_metafile_has_its_config():
    for metafile in ROOT.glob('configs/*/metafile.yml'):
        for model in yaml.safe_load(metafile.read_text()).get('Models') or []:
            assert (ROOT / model['Config']).is_file(), f'{metafile}: {model["Name"]}'
