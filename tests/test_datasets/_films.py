# SPDX-License-Identifier: Apache-2.0
"""Films whose pictures tell their number, or which corner is where."""

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

import av

from clusterplug.datasets.video import available_backends, open_video

BACKENDS = ('auto', *available_backends())


def write(path, numbers, times=None, size=(64, 48), base=Fraction(1, 1000), matrix=None, rate=25, **options):
    """A film whose pictures are gray of 4 x number, shown from ``times`` (in ``base``) on."""
    pictures = [
        np.full((size[1], size[0], 3), 4 * number, np.uint8) if isinstance(number, int) else number
        for number in numbers
    ]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(options.pop('codec', 'libx264'), rate=rate)
        stream.width, stream.height, stream.pix_fmt = (
            pictures[0].shape[1],
            pictures[0].shape[0],
            options.pop('pix_fmt', 'yuv420p'),
        )
        stream.options = {'crf': '10', **options}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = base
        if matrix is not None:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def numbers_of(path):
    video = open_video(path, 'pyav')
    return [round(float(frame.mean()) / 4) for frame in video.frames(range(video.length))]


def corners(height, width):
    """A picture with another color in each corner."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (250, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 250, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 250)
    picture[height // 2 :, width // 2 :] = (250, 250, 250)
    return picture


def near(found, expected):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 12
