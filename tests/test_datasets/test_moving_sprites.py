# SPDX-License-Identifier: Apache-2.0
"""Folders of moving sprites: begun and finished with one set of settings, never mixed with others or other files."""

import json

import pytest

pytest.importorskip('av')

from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.datasets import moving_sprites
from clusterplug.datasets.moving_sprites import MARKER, generate_moving_sprites


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two sprites, and files of a few bytes that say what was drawn."""
    monkeypatch.setattr(moving_sprites, 'all_sprites', lambda: moving_sprites.SPRITES_OF_TEST, raising=True)
    two = [moving_sprites.Sprite('circle', 'red', 'not at all'), moving_sprites.Sprite('bar', 'blue', 'in a circle')]
    monkeypatch.setattr(moving_sprites, 'SPRITES_OF_TEST', two, raising=False)
    monkeypatch.setattr(
        'clusterplug.datasets.video.encoding.write_video', lambda path, frames, rate: path.write_bytes(frames[0, 0, 0])
    )


def generate(folder, counts, **options):
    return list(generate_moving_sprites(folder, counts, size=16, **options))


def test_other_settings_are_refused_and_the_same_go_on(tmp_path):
    steps = generate_moving_sprites(tmp_path, {'train': 2, 'test': 1}, size=16)
    next(steps)
    steps.close()  # interrupted
    assert not (tmp_path / MARKER).exists()
    for options, words in ((dict(seed=1), 'seed: 0 there, 1 now'), (dict(num_frames=5), 'num_frames: 12 there, 5 now')):
        with pytest.raises(FileExistsError, match=words):
            generate(tmp_path, {'train': 2, 'test': 1}, **options)
    assert generate(tmp_path, {'train': 2, 'test': 1})[-1] == ('test', 2, 2)
    assert json.loads((tmp_path / MARKER).read_text())['videos_per_sprite'] == {'train': 2, 'test': 1}
    with pytest.raises(FileExistsError, match='videos_per_sprite'):
        generate(tmp_path, {'train': 1, 'test': 1})
    (tmp_path / 'videos/train_00001.mp4').write_bytes(b'')  # of a full disk
    generate(tmp_path, {'train': 2, 'test': 1})
    assert (tmp_path / 'videos/train_00001.mp4').stat().st_size == 3


@pytest.mark.parametrize('name', ['videos/mine.mp4', 'train.csv', 'vocabulary.txt'])
def test_files_of_others_are_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('mine')
    with pytest.raises(FileExistsError, match='moving sprites of an earlier version, or files of somebody else'):
        generate(tmp_path, {'train': 1})
    assert (tmp_path / name).read_text() == 'mine'


def test_one_writer_and_a_marker_that_is_damaged(tmp_path):
    with locked_folder(tmp_path), pytest.raises(FolderInUse):
        generate(tmp_path, {'train': 1})
    (tmp_path / MARKER).write_text('{')
    with pytest.raises(FileExistsError, match='is damaged'):
        generate(tmp_path, {'train': 1})
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError, match='must be a folder'):
        generate(tmp_path / 'file', {'train': 1})


@pytest.mark.parametrize(
    ('counts', 'options', 'words'),
    [
        ({'train': -1}, {}, 'train must be an int of at least 0, got -1'),
        ({'train': 1.5}, {}, 'train must be an int'),
        ({'../x': 1}, {}, 'names of splits'),
        ({}, {}, 'names of splits'),
        ({'train': 1}, dict(num_frames=0), 'num_frames must be an int of at least 1'),
        ({'train': 1}, dict(rate=0), 'rate must be'),
        ({'train': 1}, dict(seed=-1), 'seed must be'),
    ],
)
def test_bad_arguments(tmp_path, counts, options, words):
    with pytest.raises(ValueError, match=words):
        generate(tmp_path / 'new', counts, **options)
    assert not (tmp_path / 'new').exists()
