# SPDX-License-Identifier: Apache-2.0
"""Pictures of retrieval are written, show what they should, and refuse what does not fit."""

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='needs matplotlib: pip install clusterplug[vis]')

from clusterplug.visualization import save_contact_sheet, save_kept_tokens, save_segment_strip, save_similarity_map
from clusterplug.visualization.retrieval_figures import _darkened

FRAMES = np.full((5, 32, 32, 3), 200, np.uint8)
SEGMENTS = [(0, 3), (3, 5)]


def read(path):
    from matplotlib.image import imread

    return imread(path)


def test_kept_patches_stay_bright():
    kept = np.zeros((4, 4), bool)
    kept[1, 2] = True
    shown = _darkened(FRAMES[0], kept)
    assert (shown[8:16, 16:24] == 200).all()
    assert (shown == 200).sum() == 8 * 8 * 3


def test_all_pictures_are_written(tmp_path):
    save_kept_tokens(
        tmp_path / 'a' / 'tokens.png', FRAMES, np.array([[0, 17, 40], [50, 70, 79]]), (4, 4), SEGMENTS, 'x'
    )
    save_segment_strip(tmp_path / 'strip.png', FRAMES, SEGMENTS, np.array([1, 1, 1, 1, 0], bool))
    sheet = [[('a', 0.9, FRAMES[0]), ('b', 0.1, FRAMES[1])], [('b', 0.5, FRAMES[1])]]
    save_contact_sheet(tmp_path / 'sheet.png', ['a red circle', 'word ' * 60], sheet, ['b', None])
    save_similarity_map(tmp_path / 'map.png', np.eye(20), ranks=np.ones(20))
    save_similarity_map(tmp_path / 'plain.png', np.eye(3))
    for name in ('a/tokens', 'strip', 'sheet', 'map', 'plain'):
        picture = read(tmp_path / f'{name}.png')
        assert min(picture.shape[:2]) > 100, name
        assert picture[..., :3].std() > 0.02, name
    # the right answer has a green frame
    sheet_picture = read(tmp_path / 'sheet.png')[..., :3]
    assert ((sheet_picture - np.array([50, 205, 50]) / 255) ** 2).sum(-1).min() < 1e-3


def test_bad_input(tmp_path):
    path = tmp_path / 'x.png'
    with pytest.raises(ValueError, match='places must have shape'):
        save_kept_tokens(path, FRAMES, np.array([[0], [80]]), (4, 4), SEGMENTS)
    with pytest.raises(ValueError, match='uint8 of shape'):
        save_segment_strip(path, FRAMES.astype(float), SEGMENTS)
    with pytest.raises(ValueError, match='cover the 5 frames'):
        save_segment_strip(path, FRAMES, [(0, 2), (3, 5)])
    with pytest.raises(ValueError, match='at least one answer'):
        save_contact_sheet(path, ['a'], [[]])
    with pytest.raises(ValueError, match='scores must have shape'):
        save_similarity_map(path, np.ones(3))
    with pytest.raises(ValueError, match='ranks must have shape'):
        save_similarity_map(path, np.eye(3), ranks=np.ones(2))
    assert not path.exists()
