# SPDX-License-Identifier: Apache-2.0
"""Real clips from many sources: decoders agree, every clip can be prepared."""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.datasets.video import available_backends, open_store, open_video, sample_frames
from clusterplug.datasets.video.encoding import shrink_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif('CLUSTERPLUG_DATA' not in os.environ, reason='needs CLUSTERPLUG_DATA'),
]
CLIPS = Path(os.environ.get('CLUSTERPLUG_DATA', '.'), 'video', 'clips')


def test_every_clip_has_a_name():
    store, files = open_store(CLIPS), sorted(CLIPS.iterdir())
    assert len(store.ids()) == len(files)
    # one clip is there as mp4 and as avi, under one name
    assert {'mmaction2_test.mp4', 'mmaction2_test.avi'} < set(store.ids())
    assert store.open('mmaction2_test.avi', 'pyav').length == 164


def differences(suffix, backends):
    """48 to 421 frames, compared with PyAV, which decodes from the start: the same pictures up to two levels."""
    different = {}
    for path in sorted(CLIPS.glob(f'*{suffix}')):
        reference = open_video(path, 'pyav')
        indices, mask = sample_frames(reference.length, 4)
        indices = [*indices, reference.length - 1]
        expected = reference.frames(indices).astype(int)
        assert mask.all()
        for backend in backends:
            video = open_video(path, backend)
            if video.length != reference.length:
                different[path.name, backend] = f'{video.length} frames, PyAV {reference.length}'
            elif (worst := np.abs(video.frames(indices).astype(int) - expected).max()) > 2:
                different[path.name, backend] = f'levels differ by {worst}'
    return different


def test_decoders_agree_on_mp4():
    assert not differences('.mp4', {'auto', *available_backends()})


def test_decoders_agree_on_avi():
    """decord by itself jumps to wrong frames there; what it does not get right is decoded by PyAV."""
    assert not differences('.avi', {'auto', *available_backends()})


def test_clips_can_be_prepared(tmp_path):
    for path in sorted(CLIPS.iterdir())[::4]:
        source = open_video(path, 'pyav')
        count = shrink_video(path, tmp_path / 'small.mp4', rate=3, short_side=112)
        small = open_video(tmp_path / 'small.mp4', 'pyav')
        assert small.length == count
        assert abs(count - 3 * source.length / source.rate) <= 1.5, path.name
        assert min(small.frames([0]).shape[1:3]) == 112
