"""Where videos lie: a folder of files, folders of frames, a zip of either, an LMDB. One way to open each by its id."""

import contextlib
import io
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from clusterplug.datasets.video.decoding import UnreadableVideo, Video, open_video

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.mpg', '.mpeg', '.flv', '.wmv', '.ogv', '.3gp')
_ENVIRONMENTS = {}
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')


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
        ValueError: It is none of these.

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

    Files that differ in their suffix alone have their names with suffix as ids; of equal names in two folders neither
    can be opened.

    Stores can be pickled and used in forked workers: what they hold open is opened again in each process.

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
            ids |= {video_id} if len(names) == 1 else {PurePosixPath(name).name for name in names}
        return sorted(ids)

    def __contains__(self, video_id: str) -> bool:
        self._index()
        return video_id in self._frames or self._key(video_id) in self._files

    def open(self, video_id: str, backend: str = 'auto') -> Video:
        """Open a video.

        Args:
            video_id: Its id; the suffix of a video file may be part of it.
            backend: See :func:`~clusterplug.datasets.video.open_video`.

        Raises:
            UnreadableVideo: It is not there, not the only one of its id, or cannot be decoded.
        """
        self._index()
        if video_id in self._frames:
            return FrameSequence(self._frames[video_id], self._read, self.side_by_side)
        names = self._files.get(self._key(video_id), ())
        exact = [name for name in names if PurePosixPath(name).name == video_id]
        names = exact or names
        if not names:
            raise UnreadableVideo(f'no video {video_id} in {self.path}')
        if len(names) > 1:
            raise UnreadableVideo(f'{video_id} is the name of {len(names)} files: {", ".join(sorted(names)[:3])}')
        return open_video(self._source(names[0]), backend)

    def _key(self, video_id: str) -> str:
        return _stem(video_id)

    def _index(self) -> None:
        if self._files is not None:
            return
        files, frames = defaultdict(list), defaultdict(list)
        for name in self._names():
            path = PurePosixPath(name)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                frames[path.parent.name].append(name)
            elif path.suffix.lower() in VIDEO_SUFFIXES or self._any_name:
                files[_stem(path.name)].append(name)
        self._frames = {video_id: sorted(names) for video_id, names in frames.items()}
        self._files = dict(files)

    _any_name = False

    @abstractmethod
    def _names(self) -> Sequence[str]:
        """Names of all files, with their folders."""

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """Return the content of a file."""

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
        for folder, _, names in os.walk(self.path):
            relative = Path(folder).relative_to(self.path)
            found += [(relative / name).as_posix() for name in names]
        return found

    def _read(self, name):
        return (self.path / name).read_bytes()

    def _source(self, name):
        return str(self.path / name)


class ZipStore(VideoStore):
    """A zip of video files or of folders of frames; it is read in place."""

    def _archive(self):
        return self._here(lambda: zipfile.ZipFile(self.path))

    def _names(self):
        return [info.filename for info in self._archive().infolist() if not info.is_dir()]

    def _read(self, name):
        return self._archive().read(name)


class LmdbStore(VideoStore):
    """An LMDB whose keys are names of video files and whose values are their bytes."""

    _any_name = True

    def _environment(self):
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('videos in an LMDB need: pip install lmdb') from error
        # lmdb opens a path once in a process, and not across forks.
        key = (os.getpid(), str(self.path.resolve()))
        if key not in _ENVIRONMENTS:
            _ENVIRONMENTS[key] = lmdb.open(
                str(self.path), readonly=True, lock=False, readahead=False, subdir=self.path.is_dir(), max_spare_txns=8
            )
        return _ENVIRONMENTS[key]

    def _names(self):
        with self._environment().begin() as transaction:
            return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]

    def _read(self, name):
        with self._environment().begin() as transaction:
            return bytes(transaction.get(name.encode()))


class FrameSequence(Video):
    """A video whose frames are pictures.

    Args:
        names: Of the pictures, in order.
        read: Name -> bytes.
        side_by_side: Frames beside each other in one picture.
    """

    rate = 0.0

    def __init__(self, names: Sequence[str], read: Callable[[str], bytes], side_by_side: int = 1):
        self._names, self._read, self._side_by_side = names, read, side_by_side
        self.length = len(names) * side_by_side

    def frames(self, indices):
        """Return (len(indices), H, W, 3) uint8 RGB."""
        from PIL import Image, UnidentifiedImageError

        pictures = {}
        for index in indices:
            name = self._names[index // self._side_by_side]
            if name not in pictures:
                try:
                    with Image.open(io.BytesIO(self._read(name))) as image:
                        pictures[name] = np.asarray(image.convert('RGB'))
                except (OSError, UnidentifiedImageError) as error:
                    raise UnreadableVideo(f'{name}: {error}') from error
        frames = []
        for index in indices:
            picture = pictures[self._names[index // self._side_by_side]]
            width = picture.shape[1] // self._side_by_side
            left = index % self._side_by_side * width
            frames.append(picture[:, left : left + width])
        if len({frame.shape for frame in frames}) > 1:
            raise UnreadableVideo('its frames have different sizes')
        return np.stack(frames)


def write_lmdb(path: str | os.PathLike, files: Sequence[str | os.PathLike]) -> int:
    """Write video files into an LMDB, by their names.

    Args:
        path: Folder of the LMDB; what it holds already stays.
        files: Video files.

    Returns:
        The number of files written.

    Raises:
        ModuleNotFoundError: lmdb is missing.
        ValueError: Two files have the same name.
    """
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('writing an LMDB needs: pip install lmdb') from error
    files = [Path(file) for file in files]
    if len({file.name for file in files}) < len(files):
        raise ValueError('files must have different names, got some twice; put them under names of their own')
    size = sum(file.stat().st_size for file in files)
    with contextlib.closing(lmdb.open(str(path), map_size=2 * size + (1 << 30))) as environment:
        for file in files:
            with environment.begin(write=True) as transaction:
                transaction.put(file.name.encode(), file.read_bytes())
    return len(files)


def _stem(name: str) -> str:
    # Names of LSMDC's clips hold dots: only what is known to be a suffix is taken off.
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
