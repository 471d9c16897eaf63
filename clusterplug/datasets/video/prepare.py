"""Re-encoding whole folders of videos for training: in parallel, resumable, with a list of what could not be read."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.files import whole_file
from clusterplug.datasets.video.decoding import UnreadableVideo
from clusterplug.datasets.video.encoding import shrink_video
from clusterplug.datasets.video.stores import VIDEO_SUFFIXES

REPORT = 'unreadable_videos.txt'
ENCODERS = ('auto', 'pyav', 'ffmpeg')


class Done(NamedTuple):
    """One video: its path below the source folder, and why it could not be read ('' when it was)."""

    name: str
    problem: str


def find_videos(source: str | os.PathLike) -> list[Path]:
    """Video files of a folder at any depth, by suffix, sorted.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no video, or two that would get the same name.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'no folder {source}')
    found = sorted(path for path in source.rglob('*') if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f'{source} holds no video; known suffixes: {", ".join(VIDEO_SUFFIXES)}')
    targets = {}
    for path in found:
        other = targets.setdefault(path.relative_to(source).with_suffix('.mp4'), path)
        if other != path:
            raise ValueError(f'{other} and {path} would both become {path.with_suffix(".mp4").name}; rename one')
    return found


def prepare_videos(
    source: str | os.PathLike,
    target: str | os.PathLike,
    rate: float = 3.0,
    short_side: int = 224,
    quality: int = 23,
    encoder: str = 'auto',
    workers: int | None = None,
) -> Iterator[Done]:
    """Re-encode every video of a folder into another folder.

    Each file of ``target`` appears whole or not at all and is not made again; ``unreadable_videos.txt`` there lists
    name and reason of those that failed (and is empty when none did).

    Args:
        source: Folder with videos.
        target: Another folder, outside of it.
        rate: Frames per second, at most.
        short_side: Pixels of the shorter side, at most.
        quality: Constant rate factor of x264.
        encoder: ``'pyav'``, ``'ffmpeg'`` (the program), or ``'auto'``: PyAV where it is installed.
        workers: Processes; by default one for each core.

    Yields:
        Each video as it is done; those that were there already come first.

    Raises:
        FileNotFoundError, ValueError: As :func:`find_videos`; folders within each other, unknown encoder.
        ModuleNotFoundError: Neither PyAV nor ffmpeg is there.
    """
    source, target = Path(source), Path(target)
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f'target must lie outside of source, got {target} in {source}')
    encoder = _encoder(encoder)
    names = [path.relative_to(source) for path in find_videos(source)]
    problems, left = {}, []
    for name in names:
        if (target / name.with_suffix('.mp4')).is_file():
            yield Done(str(name), '')
        else:
            left.append(name)
    for folder in {(target / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    settings = (rate, short_side, quality, encoder)
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = {
            pool.submit(_one, source / name, target / name.with_suffix('.mp4'), *settings): str(name) for name in left
        }
        try:
            for job in as_completed(jobs):
                problem = job.result()
                if problem:
                    problems[jobs[job]] = problem
                yield Done(jobs[job], problem)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            with whole_file(target / REPORT) as file:
                file.writelines(f'{name}\t{problem}\n' for name, problem in sorted(problems.items()))


def _encoder(name: str) -> str:
    if name not in ENCODERS:
        raise ValueError(f'encoder must be one of {", ".join(ENCODERS)}, got {name!r}')
    if name in ('auto', 'pyav'):
        try:
            import av  # noqa: F401
        except ModuleNotFoundError:
            if name == 'pyav':
                raise ModuleNotFoundError('encoder pyav needs: pip install av') from None
        else:
            return 'pyav'
    if shutil.which('ffmpeg') is None:
        raise ModuleNotFoundError('re-encoding needs PyAV (pip install av) or the program ffmpeg')
    return 'ffmpeg'


def _one(source: Path, target: Path, rate: float, short_side: int, quality: int, encoder: str) -> str:
    try:
        if encoder == 'pyav':
            shrink_video(source, target, rate, short_side, quality)
        else:
            _run_ffmpeg(source, target, rate, short_side, quality)
    except UnreadableVideo as error:
        return str(error)
    return ''


def _run_ffmpeg(source: Path, target: Path, rate: float, short_side: int, quality: int) -> None:
    part = target.with_name(f'{target.name}.{os.getpid()}.part')
    scale = f"scale='if(gt(iw,ih),-2,min(iw,{short_side}))':'if(gt(iw,ih),min(ih,{short_side}),-2)'"
    reading = ['ffmpeg', '-nostdin', '-v', 'error', '-y', '-i', str(source), '-map', '0:v:0', '-an']
    coding = ['-c:v', 'libx264', '-crf', str(quality), '-g', '12', '-pix_fmt', 'yuv420p', '-threads', '1', '-f', 'mp4']
    command = [*reading, '-vf', f'fps={rate},{scale}', *coding, str(part)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not part.is_file() or not part.stat().st_size:
            lines = result.stderr.strip().splitlines() or ['no picture came out']
            raise UnreadableVideo(f'ffmpeg: {lines[-1][:200]}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
