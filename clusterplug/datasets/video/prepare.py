# SPDX-License-Identifier: Apache-2.0
"""Re-encoding whole folders of videos for training: in parallel, resumable, with a list of what could not be read."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.checks import whole_number
from clusterplug.core.files import remove_leftovers, whole_file
from clusterplug.core.outputs import LOCK, fingerprint, locked_folder, refuse_source_targets
from clusterplug.core.processes import WorkerDied, available_cpus, map_in_processes
from clusterplug.datasets.video._ffmpeg import shrink_with_ffmpeg
from clusterplug.datasets.video._journal import JOURNAL, Journal
from clusterplug.datasets.video.decoding import UnreadableVideo
from clusterplug.datasets.video.encoding import check_settings, exact_rate, shrink_video
from clusterplug.datasets.video.stores import VIDEO_SUFFIXES

REPORT = 'unreadable_videos.txt'
ENCODERS = ('auto', 'pyav', 'ffmpeg')
_RULES = 2  # raised when the same settings come to give other files
_ODD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class Done(NamedTuple):
    """One file of the source folder.

    Attributes:
        name: Its path below the source folder.
        problem: Why there is no video of it; empty where there is one.
        target: The video's path below the target folder; empty where there is none.
        kind: ``'video'``; ``'passed over'``: its suffix is not that of a video; ``'kept'``: at its place lies a file
            that was not made here.
    """

    name: str
    problem: str
    target: str = ''
    kind: str = 'video'


class Found(NamedTuple):
    """What a source folder holds: paths below it.

    Attributes:
        videos: Video -> the file below the target folder that it becomes.
        others: File that is passed over, or folder that cannot be read -> why.
    """

    videos: dict[Path, Path]
    others: dict[str, str]


def find_videos(source: str | os.PathLike) -> list[Path]:
    """Video files of a folder at any depth, by suffix, sorted.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no video.
    """
    return [Path(source) / name for name in survey(source).videos]


def survey(source: str | os.PathLike) -> Found:
    """Find the videos of a folder, the names of their small versions, and what is passed over.

    ``clip.avi`` becomes ``clip.mp4``. Of several that would get one name, the first (an ``.mp4`` before others) gets
    it, the others are named after their suffix, too: ``clip_avi.mp4``. Files whose names begin with a dot are ignored.

    Raises:
        FileNotFoundError, ValueError: As :func:`find_videos`.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'no folder {source}')
    found, others = [], {}

    def note(error):
        others[os.path.relpath(error.filename, source)] = f'the folder cannot be read: {error.strerror}'

    for folder, folders, names in os.walk(source, onerror=note):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                others[os.path.relpath(os.path.join(folder, name), source)] = 'passed over, a link to a folder'
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(source)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                found.append(relative)
            elif not name.startswith('.'):
                suffix = f'suffix {path.suffix}' if path.suffix else 'name without suffix'
                others[str(relative)] = f'passed over, its {suffix} is none of {", ".join(VIDEO_SUFFIXES)}'
    if not found:
        raise ValueError(f'{source} holds no video; known suffixes: {", ".join(VIDEO_SUFFIXES)}')
    return Found(_target_names(sorted(found)), others)


def _target_names(videos: list[Path]) -> dict[Path, Path]:
    folders = {parent for name in videos for parent in name.parents}
    taken, targets = set(folders), {}
    for name in sorted(videos, key=lambda name: (name.suffix != '.mp4', name)):
        target, own = name.with_suffix('.mp4'), name.stem
        while target in taken:
            own = f'{own}_{name.suffix[1:]}'
            target = name.with_name(f'{own}.mp4')
        taken.add(target)
        targets[name] = target
    return {name: targets[name] for name in videos}


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

    Each file of ``target`` appears whole or not at all. What it was made of, settings and the source's size and time,
    is noted in ``target``: it is not made again while they are the same, and made again when they are not. Files of
    ``target`` that were not made here stay as they are. ``unreadable_videos.txt`` there has one line for each file
    without a small version: its name (line breaks and the like escaped as in Python), a tab, the reason.

    Args:
        source: Folder with videos; it is only read.
        target: Another folder, outside of it.
        rate: Frames per second, 0.01 to 1000; slower videos have frames repeated.
        short_side: Pixels of the shorter side, at most.
        quality: Constant rate factor of x264, 0 to 51.
        encoder: ``'pyav'``, ``'ffmpeg'`` (the program), or ``'auto'``: PyAV where it is installed.
        workers: Processes; by default one for each CPU that this process may use.

    Yields:
        Each video as it is done; those that were there already and files that are passed over come first.

    Raises:
        FileNotFoundError, ValueError: As :func:`find_videos`; targets in the source, settings out of range.
        FolderInUse: Another run writes to ``target``.
        OSError: A file cannot be written; the disk may be full. What was done stays.
        ModuleNotFoundError: Neither PyAV nor ffmpeg is there.
    """
    source, target = Path(source), Path(target)
    check_settings(rate, short_side, quality)
    encoder = _encoder(encoder)
    workers = whole_number('workers', workers, optional=True)
    found = survey(source)
    own = [target / name for name in (REPORT, JOURNAL, LOCK)]
    refuse_source_targets(source, [target, *own, *(target / name for name in found.videos.values())])
    wanted = dict(fps=str(exact_rate(rate)), size=short_side, quality=int(quality), encoder=encoder, rules=_RULES)
    return _prepare(source, target, found, wanted, rate, workers or available_cpus())


def _prepare(source: Path, target: Path, found: Found, wanted: dict, rate: float, workers: int):
    problems, left = dict(found.others), {}
    with locked_folder(target):
        try:
            yield from (Done(name, problem, kind='passed over') for name, problem in found.others.items())
            journal = Journal(target)
            for name, small in found.videos.items():
                state = journal.state(str(small), _record(source, name, wanted))
                if state == 'done':
                    yield Done(str(name), '', str(small))
                elif state == 'foreign':
                    problems[str(name)] = (
                        f'{small} is there already without a note of what it was made of: by an earlier version, or '
                        'by another tool. Move it away to have it made, or choose another folder'
                    )
                    yield Done(str(name), problems[str(name)], kind='kept')
                else:
                    left[name] = small
            journal.begin(str(small) for small in left.values())
            one = partial(_one, source, target, found.videos, rate, wanted)
            with closing(map_in_processes(one, left, workers)) as answers:
                for name, answer in answers:
                    problem, record = (str(answer), None) if isinstance(answer, WorkerDied) else answer
                    if problem:
                        problems[str(name)] = problem
                        journal.give_up(str(left[name]))
                    else:
                        journal.finish(str(left[name]), record)
                    yield Done(str(name), problem, '' if problem else str(left[name]))
        except BaseException:
            with suppress(OSError):  # on a full disk: what is raised already says so
                _write_report(target, problems)
            raise
        finally:  # of workers that were killed, or told to end at a moment when they could not
            remove_leftovers(target / small for small in left.values())
        _write_report(target, problems)


def _write_report(target: Path, problems: dict[str, str]) -> None:
    with whole_file(target / REPORT, encoding='utf-8') as file:
        file.writelines(f'{one_line(name)}\t{one_line(problem)}\n' for name, problem in sorted(problems.items()))


def one_line(text: str) -> str:
    """Return a text as one printable line: everything else, and the backslash, escaped as in Python.

    Example:
        >>> print(one_line('two\\nlines'))
        two\\nlines
    """
    return ''.join(
        each if each.isprintable() and each != '\\' else each.encode('unicode_escape').decode() for each in text
    )


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


def _record(source: Path, name: Path, wanted: dict) -> dict | None:
    try:
        return {'source': str(name), **fingerprint(source / name), **wanted}
    except OSError:
        return None  # it says why when it is opened


def _one(source: Path, target: Path, names: dict, rate: float, wanted: dict, name: Path) -> tuple[str, dict | None]:
    """Return what is wrong with a video, and what its small version was made of."""
    small = target / names[name]
    record = _record(source, name, wanted)  # before it is read: a change meanwhile is seen the next time
    shrink = shrink_video if wanted['encoder'] == 'pyav' else shrink_with_ffmpeg
    try:
        small.parent.mkdir(parents=True, exist_ok=True)
        shrink(source / name, small, rate, wanted['size'], wanted['quality'])
        record = {**record, 'made': os.stat(small).st_size}
    except UnreadableVideo as error:
        return str(error), None
    except OSError as error:
        if error.errno not in _ODD_NAME:
            raise
        return f'its small version cannot have the name {names[name]}: {error.strerror}', None
    return '', record
