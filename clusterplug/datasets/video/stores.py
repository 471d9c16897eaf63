# SPDX-License-Identifier: Apache-2.0
"""Where videos lie: a folder of files, folders of frames, a zip of either, an LMDB. One way to open each by its id."""

import hashlib
import io
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from clusterplug.datasets.video.decoding import UnreadableVideo, Video, open_video
from clusterplug.datasets.video.frame_sequence import FrameSequence, natural_order, reading
from clusterplug.datasets.video.lmdb_files import open_environment, write_lmdb  # noqa: F401  part of this face

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.mpg', '.mpeg', '.flv', '.wmv', '.ogv', '.3gp')
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
# A member of a zip is unpacked into memory: videos and pictures are packed already and shrink by little.
LARGEST_MEMBER = 2**30
LARGEST_RATIO = 100
_RATIO_FROM = 2**24


def open_store(path: str | os.PathLike, side_by_side: int = 1) -> 'VideoStore':
    """Find out what kind of store a path is.

    Args:
        path: A folder with videos (at any depth) or with one folder of frames for each video, a ``.zip`` of either, or
            an LMDB (a folder with ``data.mdb``, or a file ``.lmdb``) of whole video files by name.
        side_by_side: Frames that a stored picture holds beside each other.

    Returns:
        The store.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is none of these, or damaged as a whole.

    Example:
        >>> import tempfile
        >>> open_store(tempfile.mkdtemp()).ids()
        []
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'videos must be a folder, a .zip or an LMDB, got {path}, which does not exist')
    if path.is_dir():
        kind = LmdbStore if (path / 'data.mdb').is_file() else FolderStore
    elif path.suffix == '.lmdb':
        kind = LmdbStore
    elif zipfile.is_zipfile(path):
        kind = ZipStore
    else:
        raise ValueError(f'videos must be a folder, a .zip or an LMDB, got {path}')
    return kind(path, side_by_side)


class VideoStore(ABC):
    """Videos by their ids: the names of files without folder and suffix, or of folders of frames.

    Files that differ in their suffix alone have their names with suffix as ids, as has a file next to a folder of
    frames of its name; of equal names in two folders neither can be opened. Frames of a folder are in the order of
    their numbers: 2.jpg comes before 10.jpg. Pictures outside of a folder are no frames of a video.

    Stores can be pickled and used in forked workers: what they hold open is opened again in each process. It is closed
    with the last reference, or with :meth:`close`.

    Args:
        path: Where.
        side_by_side: Frames in each stored picture.
    """

    def __init__(self, path: Path, side_by_side: int = 1):
        if side_by_side < 1:
            raise ValueError(f'side_by_side must be at least 1, got {side_by_side}')
        self.path, self.side_by_side = Path(path), side_by_side
        self._files, self._frames = None, None
        self._open = threading.local()

    def ids(self) -> list[str]:
        """All ids, sorted."""
        self._index()
        ids = set(self._frames)
        for video_id, names in self._files.items():
            alone = len(names) == 1 and video_id not in self._frames
            ids |= {video_id} if alone else {PurePosixPath(name).name for name in names}
        return sorted(ids)

    def __contains__(self, video_id: str) -> bool:
        self._index()
        return video_id in self._frames or bool(self._named(video_id))

    def open(self, video_id: str, backend: str = 'auto') -> Video:
        """Open a video.

        Args:
            video_id: Its id; the suffix of a video file may be part of it.
            backend: See :func:`~clusterplug.datasets.video.open_video`.

        Raises:
            UnreadableVideo: It is not there, not the only one of its id, damaged, too large, or cannot be decoded.
        """
        names, are_frames = self._members(video_id)
        if are_frames:
            return FrameSequence(names, self._read, self.side_by_side)
        with reading(names[0]):
            source = self._source(names[0])
        return open_video(source, backend)

    def fingerprint(self, video_id: str) -> str:
        """Name the content of a video: another text when its file, member or entry was replaced.

        Raises:
            UnreadableVideo: It is not there, or not the only one of its id.
        """
        names, _ = self._members(video_id)
        with reading(names[0]):
            parts = [(name, *self._identity(name)) for name in names]
        return hashlib.sha256(repr(parts).encode('utf-8', 'surrogateescape')).hexdigest()[:24]

    def stamp(self) -> str:
        """Name the state of the whole store; empty where that takes no less than all fingerprints."""
        return ''

    def close(self) -> None:
        """Close what this process holds open; it is opened again when needed."""
        self._open = threading.local()

    def _members(self, video_id: str) -> tuple[list[str], bool]:
        """Names of the one file, or of the frames, of a video; and whether they are frames."""
        self._index()
        folders = self._frames.get(video_id, {})
        if len(folders) > 1:
            raise UnreadableVideo(f'{video_id} is the name of {len(folders)} folders: {", ".join(sorted(folders)[:3])}')
        if folders:
            return next(iter(folders.values())), True
        names = self._named(video_id)
        if not names:
            raise UnreadableVideo(f'no video {video_id} in {self.path}')
        if len(names) > 1:
            raise UnreadableVideo(f'{video_id} is the name of {len(names)} files: {", ".join(sorted(names)[:3])}')
        return list(names), False

    def _named(self, video_id: str) -> list[str]:
        """Files of an id; of one with folders the file that lies there, never another of its name."""
        names = self._files.get(_stem(video_id), [])
        if '/' in video_id:
            return [name for name in names if video_id in (name, str(PurePosixPath(name).with_name(_stem(name))))]
        return [name for name in names if PurePosixPath(name).name == video_id] or names

    def _index(self) -> None:
        if self._files is not None:
            return
        files, frames = defaultdict(list), defaultdict(lambda: defaultdict(set))
        try:
            listed = self._names()
        except (OSError, ValueError, ModuleNotFoundError):
            raise
        except Exception as error:  # lmdb's own errors
            raise ValueError(f'{self.path} cannot be listed, it is damaged: {error}') from error
        for name in listed:
            path = PurePosixPath(name)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                if path.parent.name:
                    frames[path.parent.name][str(path.parent)].add(name)
            elif path.suffix.lower() in VIDEO_SUFFIXES or self._any_name:
                files[_stem(path.name)].append(name)
        self._frames = {
            video_id: {folder: sorted(names, key=natural_order) for folder, names in folders.items()}
            for video_id, folders in frames.items()
        }
        self._files = dict(files)

    _any_name = False

    @abstractmethod
    def _names(self) -> Sequence[str]:
        """Names of all files, with their folders."""

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """Return the content of a file."""

    @abstractmethod
    def _identity(self, name: str) -> tuple:
        """Return what differs when a file is replaced."""

    def _source(self, name: str) -> str | bytes:
        return self._read(name)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != '_open'}

    def __setstate__(self, state):
        vars(self).update(state, _open=threading.local())

    def _here(self, make: Callable):
        """Return what ``make`` opens, once for each thread of each process."""
        if getattr(self._open, 'pid', None) != os.getpid():
            self._open.pid, self._open.value = os.getpid(), make()
        return self._open.value


class FolderStore(VideoStore):
    """A folder of video files at any depth, or of folders of frames."""

    def _names(self):
        found = []
        for folder, _, names in os.walk(self.path, onerror=_raise):
            relative = Path(folder).relative_to(self.path)
            found += [(relative / name).as_posix() for name in names]
        return found

    def _read(self, name):
        return (self.path / name).read_bytes()

    def _identity(self, name):
        found = os.stat(self.path / name)
        return found.st_size, found.st_mtime_ns

    def _source(self, name):
        return str(self.path / name)


class ZipStore(VideoStore):
    """A zip of video files or of folders of frames; it is read in place.

    A member is unpacked into memory, so its size and how far it was packed are limited: at most 1 GiB, and beyond
    16 MiB at most 100 times its packed size.
    """

    def _archive(self):
        return self._here(self._open_archive)

    def _open_archive(self):
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f'{self.path} must be a whole zip, got {error}; copy or pack it again') from error

    def _names(self):
        return [info.filename for info in self._archive().infolist() if not info.is_dir()]

    def _identity(self, name):
        info = self._archive().getinfo(name)
        return info.file_size, info.CRC, info.date_time

    def _read(self, name):
        archive = self._archive()
        info = archive.getinfo(name)
        if info.file_size > LARGEST_MEMBER:
            raise UnreadableVideo(
                f'{name} is {info.file_size:,} bytes, a member of a zip may be {LARGEST_MEMBER:,}; put it in a folder'
            )
        packed = min(info.compress_size, os.path.getsize(self.path))  # a header may claim anything
        if info.file_size > max(_RATIO_FROM, LARGEST_RATIO * packed):
            raise UnreadableVideo(
                f'{name} is {info.file_size:,} bytes from {packed:,}, more than {LARGEST_RATIO} times as '
                f'many: no video or picture packs so well; put it in a folder if it is one'
            )
        # bzip2 and LZMA unpack a piece as a whole, however large it becomes: small pieces for them.
        piece = 2**20 if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else 2**12
        content = io.BytesIO()
        with archive.open(info) as member:
            while part := member.read(piece):
                content.write(part)
        if content.tell() != info.file_size:
            raise UnreadableVideo(f'{name} must be {info.file_size:,} bytes, got {content.tell():,}')
        return content.getvalue()


class LmdbStore(VideoStore):
    """An LMDB whose keys are names of video files and whose values are their bytes."""

    _any_name = True

    def _begin(self):
        held = self._here(lambda: open_environment(self.path))
        return held.environment.begin()

    def _names(self):
        with self._begin() as transaction:
            return [os.fsdecode(bytes(key)) for key in transaction.cursor().iternext(values=False)]

    def stamp(self):
        """Size and time of the file."""
        found = (self.path / 'data.mdb' if self.path.is_dir() else self.path).stat()
        return f'{found.st_size} {found.st_mtime_ns}'

    def _identity(self, name):
        # Entries carry no time: their content is the only thing that tells.
        content = self._read(name)
        return len(content), hashlib.blake2b(content, digest_size=16).hexdigest()

    def _read(self, name):
        with self._begin() as transaction:
            content = transaction.get(os.fsencode(name))
        if content is None:
            raise UnreadableVideo(f'{name} is no longer in {self.path}')
        return content


def _raise(error: OSError):
    raise error


def _stem(name: str) -> str:
    # Names of LSMDC's clips hold dots: only what is known to be a suffix is taken off.
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
