# SPDX-License-Identifier: Apache-2.0
"""Images for pre-training and probing: a folder of files, or arrays in an .npz file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from clusterplug.registry import DATASETS

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """All images below a folder; ``img_path``, and ``gt_label`` by the name of the folder that an image lies in.

    Args:
        data_root: the folder, searched with its sub-folders.
        labels: whether folders are classes, in alphabetical order (``metainfo['classes']``).
        suffixes: endings of image files, any case; those of volumes and videos with
            :class:`~clusterplug.datasets.transforms.LoadSlices`.
        split: as of :class:`ImageArrays`.
        **kwargs: as of mmengine's ``BaseDataset`` (``pipeline``, ``indices`` ...).

    Raises:
        FileNotFoundError: no such folder, or no image in it.

    Example:
        In a config: ``dataset=dict(type='clusterplug.ImageFolder', data_root='data/imagenet/train', pipeline=[...])``
    """

    def __init__(
        self,
        data_root: str,
        labels: bool = False,
        suffixes: Sequence[str] = _SUFFIXES,
        split: str | None = None,
        **kwargs,
    ):
        self.labels, self.suffixes, self.split = labels, tuple(each.lower() for each in suffixes), split
        super().__init__(data_root=data_root, ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image, sorted by path."""
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'data_root must be a folder of images, got {root}, which does not exist')
        paths = sorted(path for path in root.rglob('*') if path.name.lower().endswith(self.suffixes))
        if not paths:
            raise FileNotFoundError(f'{root} holds no image with one of the endings {", ".join(self.suffixes)}')
        more = {} if self.split is None else {'split': self.split}
        if not self.labels:
            return [dict(img_path=str(path), **more) for path in paths]
        classes = sorted({path.parent.name for path in paths})
        self._metainfo = {**self._metainfo, 'classes': tuple(classes)}
        number = {name: n for n, name in enumerate(classes)}
        return [dict(img_path=str(path), gt_label=number[path.parent.name], **more) for path in paths]


@DATASETS.register_module()
class ImageArrays(BaseDataset):
    """Images (n, H, W) or (n, H, W, 3) of an ``.npz`` file, already loaded: ``img``, and ``gt_label`` where given.

    Args:
        ann_file: the file.
        images: name of the array of images, uint8.
        labels: name of the array of labels, None for none.
        subset: ``.npy`` file with positions into the images, for a selection. None: all.
        split: name that every sample carries as ``split``: ``'train'`` samples are what a probe fits.
        **kwargs: as of mmengine's ``BaseDataset``.

    Raises:
        FileNotFoundError, ValueError: no such file or array, labels of another number.

    Example:
        In a config: ``dataset=dict(type='clusterplug.ImageArrays', ann_file='cifar10.npz', images='X_train',
        labels='y_train', pipeline=[...])``
    """

    def __init__(
        self, ann_file: str, images: str, labels: str | None = None, subset: str | None = None,
        split: str | None = None, **kwargs,
    ):  # fmt: skip
        self.images, self.labels, self.subset, self.split = images, labels, subset, split
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image."""
        if not Path(self.ann_file).is_file():
            raise FileNotFoundError(f'ann_file must be an .npz file, got {self.ann_file}, which does not exist')
        with np.load(self.ann_file) as file:
            missing = [name for name in (self.images, self.labels) if name is not None and name not in file]
            if missing:
                raise ValueError(f'{self.ann_file} has the arrays {", ".join(file.files)}, not {", ".join(missing)}')
            images = file[self.images]
            labels = None if self.labels is None else file[self.labels].reshape(-1)
        if labels is not None and len(labels) != len(images):
            raise ValueError(f'{self.labels} has {len(labels)} labels for {len(images)} images in {self.images}')
        chosen = range(len(images)) if self.subset is None else np.load(self.subset).tolist()
        more = {} if self.split is None else {'split': self.split}
        return [dict(img=images[n], **({} if labels is None else {'gt_label': int(labels[n])}), **more) for n in chosen]
