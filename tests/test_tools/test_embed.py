# SPDX-License-Identifier: Apache-2.0
"""Features of several backbones into a bank, and back."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from clusterplug.estimators import CoAssociation, read_bank
from clusterplug.estimators.feature_bank import write_view

ROOT = Path(__file__).resolve().parents[2]


def test_bank_of_mapped_views(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f'{number}.png' for number in range(10)]
    values = rng.normal(size=(10, 4))
    write_view(tmp_path, 'a', [values[:6], values[6:]], rows)
    write_view(tmp_path, 'b', [rng.normal(size=(10, 3))], rows, 'float32')
    bank = read_bank(tmp_path)
    assert list(bank) == ['a', 'b']
    assert isinstance(bank['a'], np.memmap)
    np.testing.assert_array_equal(bank['a'], values.astype(np.float16))
    assert CoAssociation(2).fit(bank).labels_.shape == (10,)
    for blocks, names, match in [
        ([values[:5]], rows, '5 rows for 10'), ([values, values], rows, 'more rows'), ([values * 1e9], rows, 'NaN'),
        ([values], rows[::-1], 'other inputs'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            write_view(tmp_path, 'c', blocks, names)
    assert list(read_bank(tmp_path)) == ['a', 'b'], 'what is not complete is not listed'
    (tmp_path / 'b.npy').unlink()
    with pytest.raises(ValueError, match='view b'):
        read_bank(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'tools/embed\.py'):
        read_bank(tmp_path / 'nothing')


def test_tool_on_pictures(tmp_path, capsys):
    pytest.importorskip('timm')
    pytest.importorskip('mmengine')
    image = pytest.importorskip('PIL.Image')
    for number in range(5):
        (tmp_path / 'pictures' / str(number % 2)).mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        image.fromarray(array).save(tmp_path / 'pictures' / str(number % 2) / f'{number}.png')
    config = tmp_path / 'config.py'
    config.write_text(
        f'inputs = {str(tmp_path / "pictures")!r}\nout = {str(tmp_path / "bank")!r}\nbatch_size = 2\n'
        "views = dict(one=dict(type='timm.test_resnet', image_size=64), two=dict(type='timm.test_vit'))\n"
    )
    specification = importlib.util.spec_from_file_location('embed_tool', ROOT / 'tools' / 'embed.py')
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    tool.main([str(config)])
    bank = read_bank(tmp_path / 'bank')
    assert {name: len(view) for name, view in bank.items()} == {'one': 5, 'two': 5}
    before = np.array(bank['one'])
    capsys.readouterr()
    tool.main([str(config)])
    assert 'one: in the bank already' in capsys.readouterr().out
    np.testing.assert_array_equal(read_bank(tmp_path / 'bank')['one'], before)
    config.write_text("inputs = 'nothing'\nout = 'x'\nviews = dict()\n")
    with pytest.raises(SystemExit):
        tool.main([str(config)])
