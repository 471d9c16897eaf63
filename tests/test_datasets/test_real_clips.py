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
    files = sorted(CLIPS.iterdir())
    # one clip is there as mp4 and as avi, under one name
    assert len(open_store(CLIPS).ids()) == len({path.stem for path in files}) == len(files) - 1


@pytest.mark.parametrize(
    'suffix',
    [
        '.mp4',
        pytest.param('.avi', marks=pytest.mark.xfail(reason='decoders number the frames of MPEG-4 in avi differently')),
    ],
)
def test_decoders_agree(suffix):
    """48 to 421 frames: the same pictures to one level, from every decoder."""
    different = {}
    for path in sorted(CLIPS.glob(f'*{suffix}')):
        reference = open_video(path, 'pyav')
        indices, mask = sample_frames(reference.length, 4)
        expected = reference.frames(indices).astype(int)
        assert mask.all()
        for backend in set(available_backends()) - {'pyav'}:
            video = open_video(path, backend)
            if video.length != reference.length:
                different[path.name, backend] = f'{video.length} frames, PyAV {reference.length}'
            elif (worst := np.abs(video.frames(indices).astype(int) - expected).max()) > 2:
                different[path.name, backend] = f'levels differ by {worst}'
    # known and open: PyAV counts 325 frames in this file, the others 390
    assert {name for name, _ in different} <= {'torchcodec_nasa_13013.mp4'}, different


def test_clips_can_be_prepared(tmp_path):
    for path in sorted(CLIPS.iterdir())[::4]:
        source = open_video(path, 'pyav')
        count = shrink_video(path, tmp_path / 'small.mp4', rate=3, short_side=112)
        small = open_video(tmp_path / 'small.mp4', 'pyav')
        assert small.length == count
        assert abs(count - 3 * source.length / source.rate) <= 1.5, path.name
        assert min(small.frames([0]).shape[1:3]) == 112
