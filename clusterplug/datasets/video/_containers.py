# SPDX-License-Identifier: Apache-2.0
"""What all decoders and the encoder share: containers by their first bytes, the best stream, times, upright pictures.

The rules, the same for every decoder and for re-encoding:

* A file is opened as a file, and as the container that its first bytes name. Formats that name other files or network
  addresses (playlists, session descriptions, scripts) are no containers: nothing but the file itself is ever opened.
* The stream is the one that FFmpeg calls the best; cover pictures are none.
* Pictures are upright: turned and mirrored as the display matrix of the first one says, to the nearest right angle.
* Pixels are returned as they are stored: a pixel aspect ratio is not applied.
* Time is counted from the start of the container (sound included); the first picture is shown from there on. Half a
  millisecond is forgiven, as Matroska and Flash round times to milliseconds.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

TIME_TOLERANCE = 0.0005
UPRIGHT = (1, 0, 0, 1)
READ = 'MP4, MOV, Matroska, WebM, AVI, MPEG, MPEG-TS, Flash, WMV, Ogg, MXF, RealMedia, GIF, IVF and Y4M'
_SIGNATURES = (
    (0, b'\x1aE\xdf\xa3', 'matroska'),
    (0, b'OggS', 'ogg'),
    (0, b'FLV\x01', 'flv'),
    (0, b'\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c', 'asf'),
    (0, b'\x00\x00\x01\xba', 'mpeg'),
    (0, b'\x00\x00\x01\xb3', 'mpegvideo'),
    (0, b'\x06\x0e\x2b\x34', 'mxf'),
    (0, b'.RMF', 'rm'),
    (0, b'GIF87a', 'gif'),
    (0, b'GIF89a', 'gif'),
    (0, b'DKIF', 'ivf'),
    (0, b'YUV4MPEG2 ', 'yuv4mpegpipe'),
)
_MOV_ATOMS = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip', b'pnot', b'uuid', b'udta')


class UnreadableVideo(ValueError):
    """A video without frames that can be decoded; the message says why."""


class Facts(NamedTuple):
    """What a file says of its best video stream.

    Attributes:
        container: Name of FFmpeg's demuxer.
        stream: Number of the stream in the file.
        matrix: (a, b, c, d), each -1, 0 or 1: a stored position (x, y) is shown at (a x + c y, b x + d y).
        size: Width and height as they are stored.
        pts: Time stamps of the pictures in the order of display, None where they are not exact.
        times: Seconds of the pictures from the start of the container.
        rate: Average frames per second, 0 where none is known.
        plain: Whether every decoder reads it alike: one video stream, upright, with exact times.
    """

    container: str
    stream: int
    matrix: tuple[int, int, int, int]
    size: tuple[int, int]
    pts: list[int] | None
    times: np.ndarray
    rate: float
    plain: bool


def container_of(source: str | os.PathLike | bytes) -> str:
    """Name the container by its first bytes.

    Raises:
        UnreadableVideo: There is no such file, it is empty, cannot be read, or is no container that is read.
    """
    start = first_bytes(source)
    if not start:
        raise UnreadableVideo('the file is empty')
    for offset, signature, name in _SIGNATURES:
        if start[offset:].startswith(signature):
            return name
    if start[4:8] in _MOV_ATOMS:
        return 'mov'
    if start[:4] == b'RIFF' and start[8:12] in (b'AVI ', b'AVIX'):
        return 'avi'
    for offset, step in ((0, 188), (4, 192), (0, 204)):
        if len(start) > offset + step and start[offset] == start[offset + step] == 0x47:
            return 'mpegts'
    raise UnreadableVideo(f'its first bytes ({start[:12]!r}) are of no video container that is read: {READ}')


def first_bytes(source: str | os.PathLike | bytes, count: int = 256) -> bytes:
    """Return the beginning of a file or of its content."""
    if isinstance(source, bytes):
        return source[:count]
    if not os.path.isfile(source):
        raise UnreadableVideo(f'no file {os.fspath(source)!r}')
    try:
        with open(source, 'rb') as file:
            return file.read(count)
    except OSError as error:
        raise UnreadableVideo(reason(error)) from error


@contextmanager
def open_container(source: str | os.PathLike | bytes) -> Iterator:
    """Open a file or its content with PyAV, as the container that its first bytes name and nothing else.

    Raises:
        UnreadableVideo: As :func:`container_of`, and where the container cannot be opened.
    """
    import av

    name = container_of(source)
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        try:
            container = av.open(file, format=name, metadata_errors='ignore', io_open=_refuse, buffer_size=1 << 17)
        except Exception as error:  # FFmpeg's errors derive from many; a demuxer may also ask for memory in vain
            raise UnreadableVideo(reason(error)) from error
        with container:
            yield container


def _refuse(url, flags, options):
    raise PermissionError('a video may open nothing but itself')


def best_stream(container):
    """Return the best video stream that is no cover picture, decoding in one thread.

    Raises:
        UnreadableVideo: There is none.
    """
    import av

    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise UnreadableVideo('the file has no video stream' + (' but a cover' if container.streams.video else ''))
    best = container.streams.best('video')
    if best is None or best.disposition & cover:
        best = max(streams, key=_merit)
    best.thread_count = 1
    return best


def _merit(stream):
    import av

    default = bool(stream.disposition & av.stream.Disposition.default)
    return default, (stream.width or 0) * (stream.height or 0), -stream.index


def start_of(container) -> float | None:
    """Seconds at which the container starts; None where it says nothing: the first picture is the start then."""
    # AVI counts pictures in the order of storage, so that the first one shown may have number 1.
    return None if container.start_time is None or container.format.name == 'avi' else container.start_time / 1e6


def read_facts(source: str | os.PathLike | bytes) -> Facts:
    """Read packets, and decode no more than the first picture.

    Raises:
        UnreadableVideo: There is no picture that can be decoded.
    """
    first, packets, discards = None, [], False
    with open_container(source) as container:
        stream = best_stream(container)
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    packets.append(packet.pts)
                discards |= packet.is_discard
                first = first or _first_picture(packet)
        except Exception as error:
            raise UnreadableVideo(reason(error)) from error
        if first is None:
            raise UnreadableVideo('no frame can be decoded')
        rate, streams = float(stream.average_rate or 0), len(container.streams.video)
        name, matrix = container_of(source), matrix_of(first)
        timed = name != 'avi' and None not in packets and first.pts is not None and len(set(packets)) == len(packets)
        if timed:  # pictures before the first that can be decoded (a cut inside of a group) are lost for all
            packets = sorted(pts for pts in packets if pts >= first.pts)
            seconds = np.array(packets, dtype=np.float64) * float(stream.time_base)
            times = seconds - min(seconds[0], start_of(container) if start_of(container) is not None else seconds[0])
        else:
            times = np.arange(len(packets)) / (rate or 25)
    # Elsewhere packets and pictures need not have the same time stamps: pictures are counted.
    exact = timed and name in ('mov', 'matroska')
    plain = exact and streams == 1 and matrix == UPRIGHT and not discards
    size = first.width, first.height
    return Facts(name, stream.index, matrix, size, packets if exact else None, times, rate, plain)


def _first_picture(packet):
    import av

    try:
        frames = packet.decode()
    except av.FFmpegError:  # damaged; a later one may do
        return None
    return frames[0] if frames else None


def matrix_of(frame) -> tuple[int, int, int, int]:
    """Return the display matrix of a frame, to the nearest right angle: :attr:`Facts.matrix`."""
    data = frame.side_data.get('DISPLAYMATRIX')
    if data is None:
        return UPRIGHT
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a picture (H, W, ...) as its display matrix says."""
    a, b, c, d = matrix
    if a == 0:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def shown_at(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the number of the picture shown at each time: the last one up to then, the first one before all.

    Example:
        >>> shown_at(np.array([0.0, 8.0, 8.1]), np.array([0.0, 7.9, 8.0, 9.0])).tolist()
        [0, 0, 1, 2]
    """
    return np.maximum(np.searchsorted(times, np.asarray(seconds) + TIME_TOLERANCE, side='right') - 1, 0)


def reason(error: BaseException) -> str:
    """Return type and first line of an error of any library."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0][:200] if lines else "no message"}'
