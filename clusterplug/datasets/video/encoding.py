# SPDX-License-Identifier: Apache-2.0
"""Writing small videos: frames to mp4, and any video to few frames of a small size."""

import math
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from fractions import Fraction

import numpy as np

from clusterplug.core.files import whole_file
from clusterplug.datasets.video._containers import (
    TIME_TOLERANCE,
    UPRIGHT,
    UnreadableVideo,
    best_stream,
    container_of,
    matrix_of,
    open_container,
    reason,
    start_of,
    upright,
)

LONGEST_PICTURE = 3600.0  # seconds that one picture may stay; more is a damaged time stamp, which would fill the disk


def write_video(path: str | os.PathLike, frames: np.ndarray, rate: float = 25, quality: int = 18) -> None:
    """Write frames as H.264 in mp4; the file appears whole or not at all.

    Args:
        path: ``.mp4`` file.
        frames: (T, H, W, 3) uint8 RGB, H and W even.
        rate: Frames per second, 0.01 to 1000.
        quality: Constant rate factor of x264, 0 (exact) to 51.

    Raises:
        TypeError, ValueError: ``frames`` has another type or shape, another argument is out of range.
        OSError: The file cannot be written.
        ModuleNotFoundError: PyAV is missing.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise TypeError(f'frames must be a numpy array of uint8, got {getattr(frames, "dtype", type(frames).__name__)}')
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f'frames must have shape (T, H, W, 3) with T >= 1 and even H and W, got {frames.shape}')
    check_settings(rate=rate, quality=quality)
    with _Writer(path, frames.shape[2], frames.shape[1], rate, quality) as writer:
        for frame in frames:
            writer.add(_av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24'))


def check_settings(rate: float = 3.0, short_side: int = 224, quality: int = 23) -> None:
    """Raise unless the settings of an encoder are in range.

    Raises:
        ValueError: With the name, what is allowed and what came.
    """
    number = isinstance(rate, int | float | Fraction | np.floating | np.integer) and not isinstance(rate, bool)
    if not number or not 0.01 <= rate <= 1000:
        raise ValueError(f'rate must be a number of frames per second between 0.01 and 1000, got {rate!r}')
    for name, value, low, high in (('short_side', short_side, 2, 16384), ('quality', quality, 0, 51)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
            raise ValueError(f'{name} must be a whole number between {low} and {high}, got {value!r}')


def exact_rate(rate: float) -> Fraction:
    """Return the rate as the fraction that the file gets: 29.97 stays 2997/100."""
    return Fraction(float(rate)).limit_denominator(1000)


def shrink_video(
    source: str | os.PathLike,
    target: str | os.PathLike,
    rate: float = 3.0,
    short_side: int = 224,
    quality: int = 23,
) -> int:
    """Re-encode a video to few frames per second and a short side, without sound.

    A frame is taken at each multiple of 1 / ``rate`` seconds: the last one shown up to then. So time is kept whatever
    the rate of the source: pauses last, pictures of a slower source are repeated, a picture stays until the next one
    or, the last one, for its own duration. Time is counted from the start of the file, sound included; what is shown
    before the first picture is that picture. Videos are never enlarged. Pictures are written upright, mirrored where
    the file says so; a pixel aspect ratio is handed on, not applied. Of several streams the best is taken, as by
    :func:`~clusterplug.datasets.video.open_video`; cover pictures are none.

    Args:
        source: Any video.
        target: ``.mp4`` file; it appears whole or not at all.
        rate: Frames per second, 0.01 to 1000.
        short_side: Pixels of the shorter side, 2 to 16384. Sides are rounded to even numbers.
        quality: Constant rate factor of x264, 0 (exact) to 51.

    Returns:
        Frames written.

    Raises:
        UnreadableVideo: ``source`` has no video that can be decoded, or none that can be encoded.
        OSError: ``target`` cannot be written: full disk, no permission.
        ValueError: A setting is out of range.
        ModuleNotFoundError: PyAV is missing.

    Source:
        Luo et al., "CLIP4Clip": compressing to 3 frames per second and 224 pixels.
    """
    av = _av()
    check_settings(rate, short_side, quality)
    container_of(source)
    with closing(_slots(_timed_frames(source), exact_rate(rate))) as pictures:
        frame, count = next(pictures)
        matrix, (width, height) = matrix_of(frame), _size(frame.width, frame.height, short_side)
        shown = (width, height) if matrix[0] else (height, width)
        try:
            with _Writer(target, *shown, rate, quality, _aspect(source, matrix)) as writer:
                while frame is not None:
                    small = _small(frame, width, height, matrix)
                    for _ in range(count):
                        writer.add(small)
                    frame, count = next(pictures, (None, 0))
        except av.FFmpegError as error:  # the encoder's: the target is written by Python, whose errors are others
            raise UnreadableVideo(f'it cannot be encoded at {shown[0]} x {shown[1]}: {reason(error)}') from error
    return writer.written


def _timed_frames(source) -> Iterator[tuple[float, object]]:
    """Yield seconds since the start and frame, in rising order; at last the end and None."""
    end, offset, previous = 0.0, None, 0.0
    try:
        with open_container(source) as container:
            stream = best_stream(container)
            step = 1 / float(stream.average_rate or 25)
            for frame in container.decode(stream):
                seconds = end if frame.time is None else frame.time
                if offset is None:
                    start = start_of(container)
                    offset = -(seconds if start is None or frame.time is None else min(start, seconds))
                if seconds + offset < previous - 0.5:  # the clock was set back (files put together): it goes on
                    offset = end - seconds
                seconds = max(seconds + offset, previous)
                if seconds > previous + LONGEST_PICTURE:
                    raise UnreadableVideo(f'its time jumps from {previous:.0f} s to {seconds:.0f} s')
                yield seconds, frame
                previous = seconds
                duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
                end = seconds + min(duration, LONGEST_PICTURE)
    except (UnreadableVideo, GeneratorExit):
        raise
    except Exception as error:  # FFmpeg's errors derive from many, and a header may ask for memory in vain
        raise UnreadableVideo(reason(error)) from error
    if offset is None:
        raise UnreadableVideo('no frame can be decoded')
    yield end, None


def _slots(frames: Iterator[tuple[float, object]], rate: Fraction) -> Iterator[tuple[object, int]]:
    """Yield each frame that is shown at a multiple of 1 / rate, and at how many of them."""
    slot, shown = 0, None
    for seconds, frame in frames:
        # A frame is shown from the first slot on that is not before it.
        first = max(0, math.ceil((seconds - TIME_TOLERANCE) * rate))
        if shown is not None:
            # A film has one frame at least, however short it is.
            count = max(first, 1 if frame is None else 0) - slot
            if count > 0:
                yield shown, count
                slot += count
        shown = frame


def _small(frame, width: int, height: int, matrix):
    """Scale to the stored (width, height) and turn upright; colors stay as they are."""
    if matrix == UPRIGHT:
        return frame.reformat(width=width, height=height, format='yuv420p')
    # Full-size color planes can be turned as the brightness is.
    planes = frame.reformat(width=width, height=height, format='yuv444p').to_ndarray()
    planes = np.ascontiguousarray(np.stack([upright(plane, matrix) for plane in planes]))
    turned = _av().VideoFrame.from_ndarray(planes, format='yuv444p')
    return turned.reformat(format='yuv420p')


def _aspect(source, matrix) -> Fraction | None:
    with open_container(source) as container:
        aspect = best_stream(container).sample_aspect_ratio
    return 1 / aspect if aspect and not matrix[0] else aspect


class _Writer:
    """An mp4 under a temporary name until it is complete."""

    def __init__(self, path, width: int, height: int, rate: float, quality: int, aspect: Fraction | None = None):
        self._file = whole_file(path, 'wb')
        self._settings = width, height, exact_rate(rate), quality, aspect
        self.written = 0

    def __enter__(self):
        av = _av()
        width, height, rate, quality, aspect = self._settings
        file = self._file.__enter__()
        try:
            self._time_base = 1 / rate
            self._container = av.open(file, 'w', format='mp4')
            self._stream = self._container.add_stream('libx264', rate=rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, 'yuv420p'
            self._stream.thread_count = 1
            if aspect:
                self._stream.codec_context.sample_aspect_ratio = aspect
            # Short groups of pictures: a frame in the middle needs few others.
            self._stream.options = {'crf': str(quality), 'preset': 'veryfast', 'g': '12'}
        except BaseException as error:
            self._file.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def add(self, frame) -> None:
        frame.pts, frame.time_base = self.written, self._time_base
        self.written += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
                self._container.close()
        except BaseException as problem:
            kind, error, trace = type(problem), problem, problem.__traceback__
            raise
        finally:
            try:
                with suppress(Exception):  # after an error it complains once more
                    self._container.close()
            except BaseException as problem:  # told to end just now: the temporary file has to go all the same
                kind, error, trace = type(problem), problem, problem.__traceback__
                raise
            finally:
                self._file.__exit__(kind, error, trace)


def _size(width: int, height: int, short_side: int) -> tuple[int, int]:
    # x264 needs even sides: the nearest, but none longer than before.
    factor = min(1.0, short_side / min(width, height))
    return tuple(max(2, 2 * min(math.floor(side * factor / 2 + 0.5), side // 2)) for side in (width, height))


def _av():
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("writing videos needs: pip install av (or 'clusterplug[video]')") from error
    return av
