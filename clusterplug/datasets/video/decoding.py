# SPDX-License-Identifier: Apache-2.0
"""Frames of a video by their numbers, from decord, PyAV or torchcodec: whichever is installed, the same frames.

Rotation, pixel aspect ratio, time and the choice of the stream follow one rule: pictures come upright, mirrored where
the file says so, with pixels as they are stored (a pixel aspect ratio is not applied); cover pictures are no videos.
"""

import functools
import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch  # noqa: F401  decord2 3.4 imported before torch ends the process when torch comes

from clusterplug.datasets.video._containers import (
    Facts,
    UnreadableVideo,
    best_stream,
    container_of,
    first_bytes,
    open_container,
    read_facts,
    reason,
    upright,
)

BACKENDS = ('decord', 'pyav', 'torchcodec')
_MODULES = {'decord': 'decord', 'pyav': 'av', 'torchcodec': 'torchcodec'}


class Video(ABC):
    """An open video.

    Attributes:
        length: Frames.
        rate: Frames per second; 0 where none is known (frames stored as pictures).
    """

    length: int
    rate: float
    known_times: np.ndarray | None = None

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return (len(indices), H, W, 3) uint8 RGB; indices in rising order, repeats allowed.

        Pictures of another size than the first one's are scaled to it.

        Raises:
            UnreadableVideo: A frame cannot be decoded.
        """

    def times(self) -> np.ndarray:
        """Return (length,) seconds of each frame from the start of the file; numbers of frames where it has no rate."""
        return np.arange(self.length) / (self.rate or 1) if self.known_times is None else self.known_times


@functools.cache
def available_backends() -> tuple[str, ...]:
    """Names of the decoders that are installed and load, in the order of preference.

    Example:
        >>> set(available_backends()) <= set(BACKENDS)
        True
    """
    return tuple(name for name in BACKENDS if _loads(name))


def open_video(source: str | os.PathLike | bytes, backend: str = 'auto') -> Video:
    """Open a video file, or its bytes.

    Args:
        source: A path, or the content of a file.
        backend: ``'decord'``, ``'pyav'``, ``'torchcodec'``, or ``'auto'`` for the first installed one that reads the
            video.

    Decord and torchcodec read upright MP4, MOV, Matroska and WebM files with one video stream. Of all others they would
    return other frames: decord 3.4 jumps to wrong ones where times are not exact (AVI), knows no mirrored pictures and
    fails on some sizes; each has its own idea of the best stream. Of those files, and where they fail, PyAV decodes for
    them if it is installed.

    Returns:
        The video.

    Raises:
        ValueError: An unknown backend.
        ModuleNotFoundError: The backend, or all of them, are missing.
        UnreadableVideo: There is no such file, it is empty, or holds no video that can be decoded. Playlists and other
            formats that name further files or addresses are no videos.
        TypeError: ``source`` is neither a path nor bytes.
    """
    if backend not in ('auto', *BACKENDS):
        raise ValueError(f'backend must be auto, {", ".join(BACKENDS)}, got {backend!r}')
    installed = available_backends()
    if backend == 'auto' and not installed:
        raise ModuleNotFoundError("reading videos needs a decoder: pip install 'clusterplug[video]' (decord2, av)")
    if backend != 'auto' and backend not in installed:
        raise ModuleNotFoundError(f'backend {backend} is not installed or does not load; installed: {installed}')
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(f'source must be a path or the bytes of a file, got {type(source).__name__}')
    container_of(source)
    if 'pyav' not in installed:
        return _FirstThatReads(source, installed if backend == 'auto' else (backend,), None)
    facts = read_facts(source)
    order = installed if backend == 'auto' else dict.fromkeys((backend, 'pyav'))
    return _FirstThatReads(source, order if _is_plain(source, facts) else ('pyav',), facts)


def _is_plain(source: str | os.PathLike | bytes, facts: Facts) -> bool:
    return facts.plain and (not isinstance(source, bytes) or _is_certain(source))


def _is_certain(content: bytes) -> bool:
    """Return whether FFmpeg takes the content for MP4, MOV, Matroska or WebM, whatever else it holds.

    In memory no list of allowed protocols holds for decord and torchcodec, which look for the format themselves: a
    session description hidden behind an unusual beginning would be obeyed.
    """
    start = first_bytes(content, 64)
    return start[4:8] == b'ftyp' or (start[:4] == b'\x1aE\xdf\xa3' and (b'matroska' in start or b'webm' in start))


def _open(source: str | os.PathLike | bytes, backend: str, facts: Facts | None) -> Video:
    if facts is None and isinstance(source, bytes) and not _is_certain(source):
        raise UnreadableVideo('in memory, only MP4, MOV, Matroska and WebM are read without PyAV: pip install av')
    try:
        if backend == 'pyav':
            return _PyAV(source, facts)
        video = {'decord': _Decord, 'torchcodec': _TorchCodec}[backend](source)
        if facts is not None and video.length != len(facts.times):
            return _PyAV(source, facts)
    except UnreadableVideo:
        raise
    except Exception as error:  # each library has its own errors, RuntimeError among them
        raise UnreadableVideo(reason(error)) from error
    if video.length < 1:
        raise UnreadableVideo('the video has no frames')
    if facts is not None:
        video.rate, video.known_times = facts.rate, facts.times
    return video


class _FirstThatReads(Video):
    """The first backend that reads a video: decord2 3.4 fails on small ones whose width is no multiple of 64."""

    def __init__(self, source, backends: Sequence[str], facts: Facts | None):
        self._source, self._left, self._facts, self._reason = source, list(backends), facts, None
        self._next()

    def _next(self) -> None:
        while self._left:
            try:
                self._video = _open(self._source, self._left.pop(0), self._facts)
            except UnreadableVideo as error:
                self._reason = self._reason or error
                continue
            self.length, self.rate = self._video.length, self._video.rate
            return
        raise self._reason

    def frames(self, indices):
        while True:
            try:
                return self._video.frames(indices)
            except UnreadableVideo as error:
                self._reason = self._reason or error
                self._next()

    def times(self):
        return self._video.times()


class _Decord(Video):
    def __init__(self, source):
        import decord

        # One thread: workers of the loader are the parallel part, and decord hands out wrong frames across forks.
        self._reader = decord.VideoReader(_stream(source), num_threads=1)
        self.length, self.rate = len(self._reader), float(self._reader.get_avg_fps())

    def frames(self, indices):
        _check_indices(indices)
        try:
            return self._reader.get_batch(list(indices)).asnumpy()
        except Exception as error:  # decord's own DECORDError derives from Exception alone
            raise UnreadableVideo(reason(error)) from error


class _PyAV(Video):
    def __init__(self, source, facts: Facts | None = None):
        self._source, self._facts = source, facts or read_facts(source)
        self.length, self.rate, self.known_times = len(self._facts.times), self._facts.rate, self._facts.times

    def frames(self, indices):
        _check_indices(indices)
        wanted, found = sorted(set(indices)), {}
        shown = -1, None  # number and picture of what was decoded last
        try:
            for number, frame in self._numbered():
                while wanted and wanted[0] < number:
                    skipped = wanted.pop(0)
                    found[skipped] = self._still_shown(skipped, *shown)
                if not wanted:
                    break
                shown = number, frame
                if number == wanted[0]:
                    found[wanted.pop(0)] = self._picture(frame)
            for number in wanted:
                found[number] = self._still_shown(number, *shown)
        except UnreadableVideo:
            raise
        except Exception as error:  # FFmpeg's errors, and memory that a header asks for in vain
            raise UnreadableVideo(reason(error)) from error
        return np.stack([found[number] for number in indices])

    def _numbered(self):
        with open_container(self._source) as container:
            stream = best_stream(container)
            numbers = None if self._facts.pts is None else {pts: i for i, pts in enumerate(self._facts.pts)}
            for count, frame in enumerate(container.decode(stream)):
                number = count if numbers is None else numbers.get(frame.pts)
                if number is not None:
                    yield number, frame

    def _still_shown(self, wanted: int, number: int, frame) -> np.ndarray:
        # A decoder may drop a packet or two (MPEG-4 in AVI): the last picture stays on.
        if frame is None or wanted > number + 2:
            raise UnreadableVideo(f'frame {wanted} of {self.length} cannot be decoded: the file is damaged')
        return self._picture(frame)

    def _picture(self, frame) -> np.ndarray:
        width, height = self._facts.size
        return upright(frame.to_ndarray(format='rgb24', width=width, height=height), self._facts.matrix)


class _TorchCodec(Video):
    def __init__(self, source):
        from torchcodec.decoders import VideoDecoder

        source = source if isinstance(source, bytes) else _stream(source)
        self._decoder = VideoDecoder(source, dimension_order='NHWC', num_ffmpeg_threads=1)
        self.length, self.rate = len(self._decoder), float(self._decoder.metadata.average_fps or 0)

    def frames(self, indices):
        _check_indices(indices)
        try:
            return self._decoder.get_frames_at(indices=list(indices)).data.numpy()
        except Exception as error:  # RuntimeError, IndexError and others, without a common parent
            raise UnreadableVideo(reason(error)) from error


def _check_indices(indices: Sequence[int]) -> None:
    if not len(indices) or min(indices) < 0:
        raise ValueError(f'indices must be at least one number of 0 and above, got {list(indices)[:5]}')


def _stream(source):
    # With its whole path a file is never taken for a protocol, whatever its name is.
    return io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)


def _loads(name: str) -> bool:
    if importlib.util.find_spec(_MODULES[name]) is None:
        return False
    try:
        # torchcodec is found without the FFmpeg libraries that it needs.
        importlib.import_module('torchcodec.decoders' if name == 'torchcodec' else _MODULES[name])
    except Exception:  # a missing library is an ImportError, OSError or RuntimeError; whichever, this one is not usable
        return False
    return True
