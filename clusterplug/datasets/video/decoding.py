"""Frames of a video by their numbers, from decord, PyAV or torchcodec: whichever is installed, the same frames."""

import functools
import importlib.util
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch  # noqa: F401  decord2 3.4 imported before torch ends the process when torch comes

BACKENDS = ('decord', 'pyav', 'torchcodec')
_MODULES = {'decord': 'decord', 'pyav': 'av', 'torchcodec': 'torchcodec'}


class UnreadableVideo(ValueError):
    """A video without frames that can be decoded; the message says why."""


class Video(ABC):
    """An open video.

    Attributes:
        length (int): Frames.
        rate (float): Frames per second; 0 where none is known (frames stored as pictures).
    """

    length: int
    rate: float

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return (len(indices), H, W, 3) uint8 RGB; indices in rising order, repeats allowed.

        Raises:
            UnreadableVideo: A frame cannot be decoded.
        """


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
            video. Of AVI and other containers without exact times, ``'auto'`` takes PyAV, which decodes from the start:
            decord 3.4 jumps to wrong frames there.

    Returns:
        The video.

    Raises:
        ValueError: An unknown backend.
        ModuleNotFoundError: The backend, or all of them, are missing.
        UnreadableVideo: There is no such file, it is empty, or holds no video that can be decoded.
    """
    if backend not in ('auto', *BACKENDS):
        raise ValueError(f'backend must be auto, {", ".join(BACKENDS)}, got {backend!r}')
    installed = available_backends()
    if backend == 'auto' and not installed:
        raise ModuleNotFoundError("reading videos needs a decoder: pip install 'clusterplug[video]' (decord2, av)")
    if backend != 'auto' and backend not in installed:
        raise ModuleNotFoundError(f'backend {backend} is not installed or does not load; installed: {installed}')
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.is_file():
            raise UnreadableVideo(f'no file {path}')
        if path.stat().st_size == 0:
            raise UnreadableVideo('the file is empty')
    elif not source:
        raise UnreadableVideo('the file is empty')
    return _open(source, backend) if backend != 'auto' else _FirstThatReads(source, _in_order(source, installed))


def _in_order(source: str | os.PathLike | bytes, installed: Sequence[str]) -> list[str]:
    """Return the backends to try, the best one for the container first."""
    if isinstance(source, bytes):
        start = source[:12]
    else:
        with open(source, 'rb') as file:
            start = file.read(12)
    has_exact_times = start[4:8] == b'ftyp' or start[:4] == b'\x1aE\xdf\xa3'  # MP4 and MOV; Matroska and WebM
    return sorted(installed, key=lambda name: name != 'pyav' and not has_exact_times)


def _open(source: str | os.PathLike | bytes, backend: str) -> Video:
    try:
        video = {'decord': _Decord, 'pyav': _PyAV, 'torchcodec': _TorchCodec}[backend](source)
    except UnreadableVideo:
        raise
    except Exception as error:  # each library has its own errors, RuntimeError among them
        raise UnreadableVideo(_reason(error)) from error
    if video.length < 1:
        raise UnreadableVideo('the video has no frames')
    return video


class _FirstThatReads(Video):
    """The first backend that reads a video: decord2 3.4 fails on small ones whose width is no multiple of 64."""

    def __init__(self, source, backends: Sequence[str]):
        self._source, self._left, self._reason = source, list(backends), None
        self._next()

    def _next(self) -> None:
        while self._left:
            try:
                self._video = _open(self._source, self._left.pop(0))
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


class _Decord(Video):
    def __init__(self, source):
        import decord

        # One thread: workers of the loader are the parallel part, and decord hands out wrong frames across forks.
        self._reader = decord.VideoReader(_stream(source), num_threads=1)
        self.length, self.rate = len(self._reader), float(self._reader.get_avg_fps())

    def frames(self, indices):
        try:
            return self._reader.get_batch(list(indices)).asnumpy()
        except Exception as error:  # decord's own DECORDError derives from Exception alone
            raise UnreadableVideo(_reason(error)) from error


class _PyAV(Video):
    def __init__(self, source):
        import av

        self._source = source
        with av.open(_stream(source), metadata_errors='ignore') as container:
            if not container.streams.video:
                raise UnreadableVideo('the file has no video stream')
            stream = self._stream_of(container)
            self.rate = float(stream.average_rate or 0)
            # Counting packets decodes nothing; the number in the header may be missing or wrong.
            self.length = sum(packet.size > 0 for packet in container.demux(stream))

    def frames(self, indices):
        import av

        wanted, found, number = set(indices), {}, -1
        try:
            with av.open(_stream(self._source), metadata_errors='ignore') as container:
                stream = self._stream_of(container)
                stream.thread_count = 1
                for number, frame in enumerate(container.decode(stream)):
                    if number in wanted:
                        found[number] = frame.to_ndarray(format='rgb24')
                    if number >= max(wanted):
                        break
                # A decoder may drop a packet or two (MPEG-4 in AVI): the last picture stays on.
                for index in wanted - set(found):
                    if 0 <= number < index <= number + 2:
                        found[index] = frame.to_ndarray(format='rgb24')
        except (av.FFmpegError, OSError) as error:
            raise UnreadableVideo(_reason(error)) from error
        missing = sorted(wanted - set(found))
        if missing:
            raise UnreadableVideo(f'frame {missing[0]} of {self.length} cannot be decoded: the file is damaged')
        return np.stack([found[number] for number in indices])

    @staticmethod
    def _stream_of(container):
        # Not the first one: decord and torchcodec take the best, too.
        return container.streams.best('video')


class _TorchCodec(Video):
    def __init__(self, source):
        from torchcodec.decoders import VideoDecoder

        source = source if isinstance(source, bytes) else str(source)
        self._decoder = VideoDecoder(source, dimension_order='NHWC', num_ffmpeg_threads=1)
        self.length, self.rate = len(self._decoder), float(self._decoder.metadata.average_fps or 0)

    def frames(self, indices):
        try:
            return self._decoder.get_frames_at(indices=list(indices)).data.numpy()
        except Exception as error:  # RuntimeError, IndexError and others, without a common parent
            raise UnreadableVideo(_reason(error)) from error


def _stream(source):
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0][:200] if lines else "no message"}'


def _loads(name: str) -> bool:
    if importlib.util.find_spec(_MODULES[name]) is None:
        return False
    try:
        # torchcodec is found without the FFmpeg libraries that it needs.
        importlib.import_module('torchcodec.decoders' if name == 'torchcodec' else _MODULES[name])
    except Exception:  # a missing library is an ImportError, OSError or RuntimeError; whichever, this one is not usable
        return False
    return True
