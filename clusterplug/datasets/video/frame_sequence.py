# SPDX-License-Identifier: Apache-2.0
"""Videos that are stored as pictures, and what a damaged or hostile one may raise."""

import contextlib
import errno
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from clusterplug.datasets.video.decoding import UnreadableVideo, Video

# 8K has 33 million; a header may claim thousands of times as many and be small.
LARGEST_PICTURE = 40_000_000
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')  # by content: other readers of Pillow start programs
_NOT_OF_THE_ITEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever reading an item raises into :class:`UnreadableVideo`.

    Nothing is written inside, so a full disk cannot be taken for a damaged item; what the process runs out of (memory,
    open files) stays what it is.
    """
    try:
        yield
    except (UnreadableVideo, MemoryError):
        raise
    except Exception as error:  # each packing method, container and picture format has errors of its own
        if isinstance(error, OSError) and error.errno in _NOT_OF_THE_ITEM:
            raise
        raise UnreadableVideo(f'{name}: {type(error).__name__}: {error}') from error


class FrameSequence(Video):
    """A video whose frames are pictures: JPEG, PNG, WebP or BMP of 8 bits, upright by their own mark.

    Args:
        names: Of the pictures, in order.
        read: Name -> bytes.
        side_by_side: Frames next to each other in one picture.
    """

    rate = 0.0

    def __init__(self, names: Sequence[str], read: Callable[[str], bytes], side_by_side: int = 1):
        self._names, self._read, self._side_by_side = names, read, side_by_side
        self.length = len(names) * side_by_side

    def frames(self, indices):
        """Return (len(indices), H, W, 3) uint8 RGB."""
        pictures, frames = {}, []
        for index in indices:
            name = self._names[index // self._side_by_side]
            if name not in pictures:
                with reading(name):
                    pictures[name] = self._picture(name)
            width = pictures[name].shape[1] // self._side_by_side
            left = index % self._side_by_side * width
            frames.append(pictures[name][:, left : left + width])
        if len({frame.shape for frame in frames}) > 1:
            raise UnreadableVideo('its frames have different sizes')
        return np.stack(frames)

    def _picture(self, name: str) -> np.ndarray:
        from PIL import Image, ImageOps

        with Image.open(io.BytesIO(self._read(name)), formats=FORMATS) as image:
            limit = LARGEST_PICTURE * self._side_by_side
            if image.width * image.height > limit:
                raise UnreadableVideo(
                    f'{name} is {image.width} x {image.height}, a picture may have {limit:,} pixels; make it smaller'
                )
            if image.mode[0] in 'IF':
                raise UnreadableVideo(f'{name} has {image.mode} pixels of more than 8 bits; save it with 8')
            if image.width % self._side_by_side:
                raise UnreadableVideo(
                    f'{name} is {image.width} wide, which is no multiple of side_by_side={self._side_by_side}'
                )
            turned = 1
            with contextlib.suppress(Exception):  # a damaged mark is no damaged picture
                turned = image.getexif().get(0x0112, 1)
            return np.asarray((image if turned == 1 else ImageOps.exif_transpose(image)).convert('RGB'))


def natural_order(name: str) -> list:
    """Sort names by the numbers in them: 2.jpg before 10.jpg."""
    path = PurePosixPath(name)
    parts = re.split('([0-9]+)', f'{path.stem}\0{path.suffix}')
    return [(int(part), part) if number % 2 else part for number, part in enumerate(parts)]
