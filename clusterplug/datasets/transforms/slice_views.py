# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes and frames of videos: load them, and make augmented views of a whole sequence of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.registry import TRANSFORMS

VIDEOS = ('.mp4', '.avi', '.mkv', '.mov', '.webm')


@TRANSFORMS.register_module()
class LoadSlices(BaseTransform):
    """Read the file ``img_path`` as a sequence of slices: ``img`` (S, H, W) or (S, H, W, 3).

    ``.npy`` arrays, ``.nii`` and ``.nii.gz`` volumes (with nibabel, in the orientation of the file) and videos, whose
    frames are the slices.

    Args:
        axis: axis of a volume along which the slices lie; of ``.nii`` usually 2. Videos and (S, H, W, 3) have 0.
        window: (lowest, highest) value of a volume that becomes 0 and 255; None: those of the volume.
        max_slices: read at most so many, evenly spaced; None: all.
        max_anisotropy: warn once where the voxels of a ``.nii`` volume are within a slice longer in one direction
            than in the other by this factor.

    Raises:
        ModuleNotFoundError: a ``.nii`` file without nibabel.
        ValueError: a file of another kind, an array that is no sequence of pictures, NaN.

    Example:
        In a config: ``pipeline=[dict(type='clusterplug.LoadSlices', axis=2), dict(type='clusterplug.SliceViews'),
        dict(type='clusterplug.PackViews')]``
    """

    def __init__(
        self,
        axis: int = 0,
        window: Sequence[float] | None = None,
        max_slices: int | None = None,
        max_anisotropy: float = 1.5,
    ):
        self.axis = check_count(axis, 'axis', 0, 2)
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise ValueError(f'window must be (lowest, highest), got {window}')
        self.window = None if window is None else tuple(float(each) for each in window)
        self.max_slices = None if max_slices is None else check_count(max_slices, 'max_slices', 1)
        self.max_anisotropy = check_number(max_anisotropy, 'max_anisotropy', 1)
        self._warned = False

    def transform(self, results: dict) -> dict:
        """Add ``img``."""
        path = Path(results['img_path'])
        name = path.name.lower()
        if name.endswith(VIDEOS):
            results['img'] = self._frames(path)
            return results
        if name.endswith('.npy'):
            volume = np.load(path, mmap_mode='r', allow_pickle=False)
        elif name.endswith(('.nii', '.nii.gz')):
            volume = self._nifti(path)
        else:
            raise ValueError(f'img_path must end in .npy, .nii, .nii.gz or {", ".join(VIDEOS)}, got {path}')
        if volume.ndim == 4 and volume.shape[-1] == 3:
            results['img'] = self._scaled(volume[self._chosen(len(volume))], path)
            return results
        if volume.ndim != 3:
            raise ValueError(f'{path} must hold (S, H, W) or (S, H, W, 3), got shape {volume.shape}')
        volume = np.moveaxis(volume, self.axis, 0)
        results['img'] = self._scaled(volume[self._chosen(len(volume))], path)
        return results

    def _chosen(self, number: int) -> np.ndarray:
        return _evenly(number, number if self.max_slices is None else min(self.max_slices, number))

    def _scaled(self, volume: np.ndarray, path: Path) -> np.ndarray:
        """uint8 of any values."""
        volume = np.ascontiguousarray(volume)
        if volume.dtype == np.uint8 and self.window is None:
            return volume
        volume = volume.astype(np.float32)
        low, high = (float(volume.min()), float(volume.max())) if self.window is None else self.window
        if not np.isfinite([low, high]).all() or not np.isfinite(volume).all():
            raise ValueError(f'{path} holds NaN or infinity; replace them, or leave the file out')
        scaled = (volume - low) / max(high - low, 1e-30)
        return (scaled.clip(0, 1) * 255).round().astype(np.uint8)

    def _nifti(self, path: Path) -> np.ndarray:
        try:
            import nibabel
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f'reading {path} needs nibabel; install it with: pip install nibabel') from None
        image = nibabel.load(path)
        zooms = np.delete(np.asarray(image.header.get_zooms()[:3], dtype=float), self.axis)
        if not self._warned and zooms.max() > self.max_anisotropy * zooms.min():
            import warnings

            self._warned = True
            warnings.warn(
                f'{path} has voxels of {zooms[0]:g} x {zooms[1]:g} within a slice; pictures are not resampled, so that '
                f'they are distorted: choose another axis, or resample the files',
                stacklevel=2,
            )
        return np.asarray(image.get_fdata(dtype=np.float32))

    def _frames(self, path: Path) -> np.ndarray:
        from clusterplug.datasets.video.decoding import open_video

        video = open_video(str(path))
        return np.asarray(video.frames(self._chosen(video.length).tolist()))


@TRANSFORMS.register_module()
class SliceViews(BaseTransform):
    """Views of a sequence of slices: the same slices in each, changed alike within a view and differently between.

    Turns ``img``, (S, H, W) or (S, H, W, 3) uint8, into ``views``, a list of tensors (S', 3, size, size): slice n of
    every view is the same slice. :class:`~clusterplug.pretraining.ImageVolumeModel` compares them.

    Args:
        num_views: views; 1 with ``augment=False`` for validation.
        size: side of the pictures in pixels.
        num_slices: S', evenly spaced; a volume of fewer slices keeps those it has. None: all.
        scale: share of the area of a slice that a view shows, (least, most).
        flip: probability of a horizontal, and of a vertical flip.
        brightness: strength of changes of brightness.
        contrast: strength of changes of contrast.
        noise: standard deviation of noise, in levels of 0 .. 255.
        augment: False: resize alone.
        channel_order: order of the channels of ``img``.

    Random numbers come from torch's global generator, which data loaders seed in every worker.

    Raises:
        ValueError: ``img`` of another shape; options out of range.

    Source: the two views of Nguyen et al., AAAI 2023, arXiv 2212.01893. **Differs from the authors' code**: crops,
    flips, brightness, contrast and noise of torchvision on tensors, all of them; theirs draws one of torchio's changes.

    Example:
        >>> views = SliceViews(size=16, num_slices=4)(dict(img=np.zeros((9, 20, 24), np.uint8)))['views']
        >>> [tuple(view.shape) for view in views]
        [(4, 3, 16, 16), (4, 3, 16, 16)]
    """

    def __init__(
        self,
        num_views: int = 2,
        size: int = 64,
        num_slices: int | None = None,
        scale: Sequence[float] = (0.5, 1.0),
        flip: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        noise: float = 5.0,
        augment: bool = True,
        channel_order: str = 'rgb',
    ):
        from torchvision.transforms import v2

        self.num_views, self.size = check_count(num_views, 'num_views', 1), check_count(size, 'size', 1)
        self.num_slices = None if num_slices is None else check_count(num_slices, 'num_slices', 1)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f'scale must be (least, most) with 0 < least <= most <= 1, got {scale}')
        flip = check_number(flip, 'flip', 0, 1)
        self.noise, self.augment = check_number(noise, 'noise', 0), bool(augment)
        self.channel_order = check_choice(channel_order, 'channel_order', ('bgr', 'rgb'))
        brightness, contrast = (
            check_number(brightness, 'brightness', 0, 1),
            check_number(contrast, 'contrast', 0, 1),
        )
        self._resize = v2.Resize((size, size), antialias=True)
        self._change = v2.Compose([
            v2.RandomResizedCrop(size, scale=tuple(scale), antialias=True),
            v2.RandomHorizontalFlip(flip), v2.RandomVerticalFlip(flip), v2.ColorJitter(brightness, contrast),
        ])  # fmt: skip

    def transform(self, results: dict) -> dict:
        """Add ``views``."""
        slices = np.asarray(results['img'])
        if slices.ndim not in (3, 4) or (slices.ndim == 4 and slices.shape[3] != 3) or not slices.size:
            raise ValueError(f'img must be slices (S, H, W) or (S, H, W, 3), got shape {slices.shape}')
        if slices.dtype != np.uint8:
            raise TypeError(f'img must be uint8, got {slices.dtype}; use LoadSlices, which scales any values')
        number = len(slices) if self.num_slices is None else min(self.num_slices, len(slices))
        slices = slices[_evenly(len(slices), number)]
        slices = slices[..., None].repeat(3, 3) if slices.ndim == 3 else slices
        slices = slices[..., ::-1] if self.channel_order == 'bgr' else slices
        x = torch.from_numpy(np.ascontiguousarray(slices.transpose(0, 3, 1, 2)))
        results['views'] = [self._view(x) for _ in range(self.num_views)]
        return results

    def _view(self, x: torch.Tensor) -> torch.Tensor:
        if not self.augment:
            return self._resize(x)
        x = self._change(x)
        if not self.noise:
            return x
        return (x + self.noise * torch.randn(x.shape)).clamp(0, 255).round().to(torch.uint8)


def _evenly(number: int, wanted: int) -> np.ndarray:
    """Numbers of ``wanted`` slices of ``number``, in the middle of equal parts."""
    return ((np.arange(wanted) + 0.5) * number / wanted).astype(np.int64)
