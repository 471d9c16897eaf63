"""Writing small videos: frames to mp4, and any video to few frames of a small size."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from clusterplug.datasets.video.decoding import UnreadableVideo


def write_video(path: str | os.PathLike, frames: np.ndarray, rate: float = 25, quality: int = 18) -> None:
    """Write frames as H.264 in mp4; the file appears whole or not at all.

    Args:
        path: ``.mp4`` file.
        frames: (T, H, W, 3) uint8 RGB, H and W even.
        rate: Frames per second.
        quality: Constant rate factor of x264, 0 (exact) to 51.

    Raises:
        TypeError, ValueError: ``frames`` has another type or shape.
        ModuleNotFoundError: PyAV is missing.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise TypeError(f'frames must be a numpy array of uint8, got {getattr(frames, "dtype", type(frames).__name__)}')
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f'frames must have shape (T, H, W, 3) with T >= 1 and even H and W, got {frames.shape}')
    with _Writer(path, frames.shape[2], frames.shape[1], rate, quality) as writer:
        for frame in frames:
            writer.add(frame)


def shrink_video(
    source: str | os.PathLike,
    target: str | os.PathLike,
    rate: float = 3.0,
    short_side: int = 224,
    quality: int = 23,
) -> int:
    """Re-encode a video to few frames per second and a short side, without sound.

    A frame is taken at each multiple of 1 / ``rate`` seconds: the last one shown up to then. Videos are never enlarged
    and never get more frames than they have.

    Args:
        source: Any video.
        target: ``.mp4`` file; it appears whole or not at all.
        rate: Frames per second.
        short_side: Pixels of the shorter side.
        quality: Constant rate factor of x264.

    Returns:
        Frames written.

    Raises:
        UnreadableVideo: ``source`` has no video that can be decoded.
        ModuleNotFoundError: PyAV is missing.

    Source:
        Luo et al., "CLIP4Clip": compressing to 3 frames per second and 224 pixels.
    """
    av = _av()
    if Path(source).stat().st_size == 0:
        raise UnreadableVideo('the file is empty')
    written, writer, number = 0, None, -1
    try:
        with av.open(str(source), metadata_errors='ignore') as container:
            if not container.streams.video:
                raise UnreadableVideo('the file has no video stream')
            stream = container.streams.video[0]
            first = None
            for frame in container.decode(stream):
                seconds = frame.time if frame.time is not None else (number + 1) / float(stream.average_rate or 25)
                number += 1
                first = seconds if first is None else first
                if (seconds - first) * rate + 1e-6 < written:
                    continue
                if writer is None:
                    width, height = _size(frame.width, frame.height, short_side)
                    writer = _Writer(target, width, height, rate, quality)
                writer.add_frame(frame.reformat(width=writer.width, height=writer.height, format='yuv420p'))
                written += 1
        if writer is None:
            raise UnreadableVideo('no frame can be decoded')
        writer.close()
    except (av.FFmpegError, OSError) as error:
        if writer is not None:
            writer.discard()
        raise UnreadableVideo(f'{type(error).__name__}: {error}') from error
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return written


class _Writer:
    """An mp4 under a temporary name until it is complete."""

    def __init__(self, path: str | os.PathLike, width: int, height: int, rate: float, quality: int):
        av = _av()
        self._target = Path(path)
        self._part = self._target.with_name(f'{self._target.name}.{os.getpid()}.part')
        rate = Fraction(rate).limit_denominator(1000)
        self._time_base = 1 / rate
        self._container = av.open(str(self._part), 'w', format='mp4')
        self._stream = self._container.add_stream('libx264', rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, 'yuv420p'
        self._stream.thread_count = 1
        # Short groups of pictures: a frame in the middle needs few others.
        self._stream.options = {'crf': str(quality), 'preset': 'veryfast', 'g': '12'}
        self.width, self.height, self._number = width, height, 0

    def add(self, frame: np.ndarray) -> None:
        self.add_frame(_av().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24'))

    def add_frame(self, frame) -> None:
        frame.pts, frame.time_base = self._number, self._time_base
        self._number += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        os.replace(self._part, self._target)

    def discard(self) -> None:
        self._container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.discard() if kind else self.close()


def _size(width: int, height: int, short_side: int) -> tuple[int, int]:
    factor = min(1.0, short_side / min(width, height))
    return tuple(max(2, 2 * round(side * factor / 2)) for side in (width, height))


def _av():
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("writing videos needs: pip install av (or 'clusterplug[video]')") from error
    return av
