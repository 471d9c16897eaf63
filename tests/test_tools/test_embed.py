# SPDX-License-Identifier: Apache-2.0
"""Features of several backbones into a bank, and back."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from clusterplug.estimators import CoAssociation, read_bank
from clusterplug.estimators.feature_bank import is_current, write_view

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
    write_view(tmp_path, 'a', [values], rows, made_of=dict(settings=1))
    assert is_current(tmp_path, 'a', dict(settings=1))
    assert not is_current(tmp_path, 'a', dict(settings=2))
    assert not is_current(tmp_path, 'b', dict(settings=1))
    np.save(tmp_path / 'mine.npy', values)
    for name in ('../up', '', '.hidden', 'a/b', 'mine'):
        with pytest.raises(ValueError, match=r'name of a view|not of this bank'):
            write_view(tmp_path, name, [values], rows)
    np.testing.assert_array_equal(np.load(tmp_path / 'mine.npy'), values)
    (tmp_path / 'b.npy').unlink()
    with pytest.raises(ValueError, match='view b'):
        read_bank(tmp_path)
    (tmp_path / 'bank.json').write_text('{"views": 3')
    for read in (read_bank, lambda folder: is_current(folder, 'a', {})):
        with pytest.raises(ValueError, match='damaged'):
            read(tmp_path)
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
    (tmp_path / 'pictures' / 'cut.jpg').write_bytes(b'\xff\xd8\xff\xe0 not a picture')
    (tmp_path / 'pictures' / 'a\nb<!--<script>.png').write_bytes(
        (tmp_path / 'pictures' / '0' / '0.png').read_bytes()[:90]
    )
    tool.main([str(config)])
    said = capsys.readouterr().out
    assert '2 pictures could not be read' in said
    assert "'a\\nb<!--<script>.png': " in said, 'one line a picture'
    assert 'one: in the bank already' in said, 'rows are those of the pictures that can be read'
    image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / 'pictures' / '0' / '0.png')
    tool.main([str(config)])
    assert 'one: 5 x' in capsys.readouterr().out, 'a replaced picture is embedded again'
    after = np.array(read_bank(tmp_path / 'bank')['one'])
    assert (after[0] != before[0]).any()
    np.testing.assert_array_equal(after[1:], before[1:])
    config.write_text(config.read_text().replace('image_size=64', 'image_size=32'))
    tool.main([str(config)])
    said = capsys.readouterr().out
    assert 'one: 5 x' in said, 'other settings'
    assert 'two: in the bank already' in said
    image.fromarray(array).save(tmp_path / 'pictures' / '9.png')
    with pytest.raises(SystemExit, match='bank of other inputs'):
        tool.main([str(config)])
    (tmp_path / 'linked').symlink_to(tmp_path / 'pictures')
    with pytest.raises(SystemExit, match='only read'):
        tool.main([str(config), '--out', str(tmp_path / 'linked')])
    config.write_text("inputs = 'nothing'\nout = 'x'\nviews = dict()\n")
    with pytest.raises(SystemExit):
        tool.main([str(config)])
