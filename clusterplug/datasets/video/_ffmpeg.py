# SPDX-License-Identifier: Apache-2.0
"""Re-encoding with the program ffmpeg, by the rules of :func:`~clusterplug.datasets.video.encoding.shrink_video`."""

import errno
import os
import re
import signal
import subprocess

from clusterplug.core.files import whole_file
from clusterplug.core.processes import end_with_parent
from clusterplug.datasets.video._containers import (
    TIME_TOLERANCE,
    UnreadableVideo,
    best_stream,
    container_of,
    open_container,
    start_of,
)
from clusterplug.datasets.video.encoding import check_settings, exact_rate

# What ffmpeg says in English, whatever the language of the machine, when the output cannot be written.
_WRITING = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)}
_OF_THE_OUTPUT = re.compile(
    r'^\[out#|\[mp4 @|error writing|av_interleaved_write_frame|could not write|error (opening|muxing|closing).* output',
    re.IGNORECASE,
)


def shrink_with_ffmpeg(
    source: str | os.PathLike, target: str | os.PathLike, rate: float, short_side: int, quality: int
) -> None:
    """Re-encode a video with the program ffmpeg.

    Of several video streams the best is taken where PyAV is installed, else the one that ffmpeg prefers.

    Args:
        source: Any video.
        target: ``.mp4`` file; it appears whole or not at all.
        rate: Frames per second.
        short_side: Pixels of the shorter side.
        quality: Constant rate factor of x264.

    Raises:
        UnreadableVideo: ``source`` has no video that can be decoded.
        OSError: ``target`` cannot be written.
    """
    check_settings(rate, short_side, quality)
    name = container_of(source)
    with whole_file(target, 'wb') as file:
        # The program is given the name of the file that is open here; as "file:" and a whole path it is no protocol.
        command = _command(source, os.path.abspath(file.name), name, rate, short_side, quality)
        result = subprocess.run(command, capture_output=True, preexec_fn=end_with_parent)
        lines = result.stderr.decode(errors='backslashreplace').strip().splitlines()
        made = os.stat(file.name).st_size
        if result.returncode or not made:
            _raise(result.returncode, lines)


def _command(source, part: str, name: str, rate: float, short_side: int, quality: int) -> list[str]:
    rate, (stream, has_start) = exact_rate(rate), _choose(source)
    pts = 'PTS' if has_start else 'PTS-STARTPTS'
    # Frames get the number of the first slot that is not before them, and the first one is shown from the start on.
    slots = f'settb=1/1000000,setpts={pts}-{round(TIME_TOLERANCE * 1e6)},fps={rate}:round=up:start_time=0'
    scale = f"scale='{_side('iw', short_side)}':'{_side('ih', short_side)}'"
    reading = ['-protocol_whitelist', 'file', '-f', name, '-threads', '1', '-i', f'file:{os.path.abspath(source)}']
    coding = ['-c:v', 'libx264', '-preset', 'veryfast', '-crf', str(quality), '-g', '12', '-pix_fmt', 'yuv420p']
    writing = ['-threads', '1', '-an', '-sn', '-dn', '-map_metadata', '-1', '-f', 'mp4', f'file:{part}']
    return [
        'ffmpeg',
        '-nostdin',
        '-v',
        'error',
        '-y',
        *reading,
        *stream,
        '-vf',
        f'{slots},{scale}',
        *coding,
        *writing,
    ]


def _side(side: str, short_side: int) -> str:
    # As encoding._size; ffmpeg has turned the picture before.
    factor = f'min(1,{short_side}/min(iw,ih))'
    return f'max(2,2*min(floor({side}*{factor}/2+0.5),floor({side}/2)))'


def _choose(source) -> tuple[list[str], bool]:
    """Return the arguments that choose the stream, and whether ffmpeg counts time from the start of the container."""
    try:
        with open_container(source) as container:
            return ['-map', f'0:{best_stream(container).index}'], start_of(container) is not None
    except ModuleNotFoundError:
        return [], True


def _raise(code: int, lines: list[str]) -> None:
    if code == -getattr(signal, 'SIGXFSZ', 25):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    for number, text in _WRITING.items():
        if any(text in line for line in lines):
            raise OSError(number, text)
    denied = [line for line in lines if os.strerror(errno.EACCES) in line and _OF_THE_OUTPUT.search(line)]
    if denied:
        raise OSError(errno.EACCES, denied[-1])
    if code < 0:
        raise UnreadableVideo(f'ffmpeg was ended by signal {-code}')
    raise UnreadableVideo(f'ffmpeg: {lines[-1][:200] if lines else "no picture came out"}')
