# SPDX-License-Identifier: Apache-2.0
"""Pipeline steps from a video in a store and its captions to tensors."""

from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F

from clusterplug.core.checks import whole_number
from clusterplug.datasets.video import tokenizers
from clusterplug.datasets.video._containers import UnreadableVideo, shown_at
from clusterplug.datasets.video.sampling import sample_frames
from clusterplug.registry import TRANSFORMS

MAX_SLOTS = 10_000_000  # of a video whose times jump


@TRANSFORMS.register_module()
class LoadVideoFrames:
    """Decode T frames of the video ``video_id`` of ``store``.

    Adds ``frames`` (T, H, W, 3) uint8, ``frame_mask`` (T,) bool and ``frame_times`` (seconds, or numbers of frames
    where the video has no rate). Of videos whose rate varies, equal chunks of time are sampled: each multiple of 1 /
    rate stands for the frame that is shown then. When ``problem`` is set, the video could not be read: black frames and
    an empty mask.

    Args:
        num_frames: T. Defaults to 12.
        sampling: ``'random'``, ``'middle'`` of equal chunks, or ``'auto'``: random in training. Defaults to auto.
        backend: ``'auto'``, ``'decord'``, ``'pyav'`` or ``'torchcodec'``. Defaults to ``'auto'``.
        max_seconds: Only the beginning of the video, of this length.
        cache_bytes: Whole decoded videos are kept in each worker up to this size in total; a video for which
            no room is left is decoded as without a cache. Defaults to 0.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        num_frames: int = 12,
        sampling: str = 'auto',
        backend: str = 'auto',
        max_seconds: float | None = None,
        cache_bytes: int = 0,
    ):
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        if sampling not in ('auto', 'random', 'middle'):
            raise ValueError(f'sampling must be auto, random or middle, got {sampling!r}')
        if max_seconds is not None and max_seconds <= 0:
            raise ValueError(f'max_seconds must be above 0, got {max_seconds}')
        whole_number('cache_bytes', cache_bytes, least=0)
        self.num_frames, self.sampling, self.backend = num_frames, sampling, backend
        self.max_seconds, self.cache_bytes = max_seconds, cache_bytes
        self._cache, self._cached = {}, 0

    def __call__(self, results: dict) -> dict:
        """Load; raises :class:`~clusterplug.datasets.video.UnreadableVideo`."""
        if results.get('problem'):
            results['frames'] = np.zeros((self.num_frames, 32, 32, 3), np.uint8)
            results['frame_mask'] = np.zeros(self.num_frames, bool)
            results['frame_times'] = []
            return results
        random = self.sampling == 'random' or (self.sampling == 'auto' and not results.get('test_mode', False))
        frames, mask, times = self._load(results['store'], results['video_id'], random)
        results['frames'], results['frame_mask'], results['frame_times'] = frames, mask, times
        return results

    def _load(self, store, video_id: str, random: bool):
        key = str(getattr(store, 'path', id(store))), video_id
        if key in self._cache:
            everything, shown, rate = self._cache[key]
            return self._sampled(shown, rate, random, lambda indices: everything[indices])
        video = store.open(video_id, self.backend)
        shown, rate = self._shown(video), video.rate
        frames, mask, times = self._sampled(shown, rate, random, video.frames)
        # The size is known with the first frames: what would not be kept is not decoded.
        size = (int(shown[-1]) + 1) * frames[0].nbytes
        if self._cached + size <= self.cache_bytes:
            with suppress(UnreadableVideo):  # damaged where nobody has looked yet
                self._cache[key] = video.frames(range(int(shown[-1]) + 1)), shown, rate
                self._cached += size
        return frames, mask, times

    def _shown(self, video) -> np.ndarray:
        """Return the number of the frame that is shown at each multiple of 1 / rate, up to ``max_seconds``."""
        shown = np.arange(video.length)
        if not video.rate:
            return shown
        times = video.times()
        if np.abs(times - shown / video.rate).max() > 0.5 / video.rate:  # the rate varies: equal chunks are of time
            count = max(1, round(times[-1] * video.rate) + 1)
            shown = shown_at(times, np.arange(min(count, MAX_SLOTS)) / video.rate)
        if self.max_seconds is not None:
            shown = shown[: max(1, min(len(shown), round(self.max_seconds * video.rate)))]
        return shown

    def _sampled(self, shown: np.ndarray, rate: float, random: bool, frames_at):
        slots, mask = sample_frames(len(shown), self.num_frames, random)
        times = [round(float(slot) / (rate or 1), 3) for slot in slots]
        return frames_at(shown[slots].tolist()), mask, times


@TRANSFORMS.register_module()
class ResizeAndCrop:
    """Shorter side to ``size`` (bicubic with antialiasing), then the middle ``size`` x ``size``.

    Turns ``frames`` into a (T, 3, size, size) uint8 tensor.

    Args:
        size: Pixels. Defaults to 224.
    """

    def __init__(self, size: int = 224):
        if size < 1:
            raise ValueError(f'size must be at least 1, got {size}')
        self.size = size

    def __call__(self, results: dict) -> dict:
        """Resize and crop."""
        frames = torch.from_numpy(np.ascontiguousarray(results['frames'])).permute(0, 3, 1, 2)
        height, width = frames.shape[-2:]
        short = min(height, width)
        if short != self.size:
            scaled = (
                max(self.size, round(height * self.size / short)),
                max(self.size, round(width * self.size / short)),
            )
            frames = F.interpolate(frames.contiguous(), scaled, mode='bicubic', antialias=True, align_corners=False)
        top, left = (frames.shape[-2] - self.size) // 2, (frames.shape[-1] - self.size) // 2
        results['frames'] = frames[..., top : top + self.size, left : left + self.size].contiguous()
        return results


@TRANSFORMS.register_module()
class LoadFeatures:
    """Take features that were computed before, in the place of frames and token ids.

    Adds ``frames`` (T, C) float32 of the video, sampled as frames are, its mask, and ``tokens`` (captions, C'). When
    ``problem`` is set, the video has no features: zeros and an empty mask.

    Args:
        video_file: npz with ``feat`` (N, C) and ``video`` (N,), rows of a video in the order of time.
        text_file: npz with ``text`` (M, C') and ``video`` (M,), rows of a video in the order of its captions.
        num_frames: T. Defaults to 12.
        sampling: As :class:`LoadVideoFrames`.
    """

    def __init__(self, video_file: str, text_file: str, num_frames: int = 12, sampling: str = 'auto'):
        self.num_frames, self.sampling = num_frames, sampling
        self._features = _by_video(video_file, 'feat')
        self._texts = _by_video(text_file, 'text')

    def __call__(self, results: dict) -> dict:
        """Load; raises :class:`~clusterplug.datasets.video.UnreadableVideo`."""
        video_id = results['video_id']
        if results.get('problem'):
            channels, text_channels = (next(iter(each.values())).shape[1] for each in (self._features, self._texts))
            results['frames'] = torch.zeros(self.num_frames, channels)
            results['frame_mask'], results['frame_times'] = np.zeros(self.num_frames, bool), []
            results['tokens'] = torch.zeros(len(results['captions']), text_channels)
            return results
        for name, features in (('video', self._features), ('text', self._texts)):
            if video_id not in features:
                raise UnreadableVideo(f'no {name} features of {video_id}')
        features = self._features[video_id]
        random = self.sampling == 'random' or (self.sampling == 'auto' and not results.get('test_mode', False))
        indices, mask = sample_frames(len(features), self.num_frames, random)
        results['frames'], results['frame_mask'] = torch.from_numpy(features[indices]), mask
        texts = self._texts[video_id]
        rows = results.get('caption_rows', range(len(texts)))
        results['tokens'] = torch.from_numpy(texts[list(rows)])
        results['frame_times'] = [float(index) for index in indices]
        return results


@TRANSFORMS.register_module()
class TokenizeCaptions:
    """Turn ``captions`` into ``tokens`` (C, max_words) int64.

    Args:
        tokenizer: ``type`` ``'CLIPTokenizer'`` or ``'WordTokenizer'`` and its arguments.
        max_words: Ids of each caption, start and end among them. Defaults to 32.

    Raises:
        ValueError: An unknown tokenizer.
    """

    def __init__(self, tokenizer: dict | None = None, max_words: int = 32):
        settings = dict(tokenizer or dict(type='CLIPTokenizer'))
        kind = settings.pop('type', None)
        if kind not in ('CLIPTokenizer', 'WordTokenizer'):
            raise ValueError(f'tokenizer.type must be CLIPTokenizer or WordTokenizer, got {kind!r}')
        self.tokenizer, self.max_words = getattr(tokenizers, kind)(**settings), max_words

    def __call__(self, results: dict) -> dict:
        """Tokenize."""
        ids = [self.tokenizer.encode(caption, self.max_words) for caption in results['captions']]
        results['tokens'] = torch.tensor(ids, dtype=torch.int64)
        return results


@TRANSFORMS.register_module()
class PackVideoText:
    """Put tensors under ``inputs`` and everything else worth keeping into a VideoTextSample.

    Args:
        meta_keys (Sequence[str]): What to keep of the results.
    """

    def __init__(self, meta_keys=('video_id', 'captions', 'frame_times', 'problem', 'skipped')):
        self.meta_keys = tuple(meta_keys)

    def __call__(self, results: dict) -> dict:
        """Pack."""
        from clusterplug.datasets.video.sample import VideoTextSample

        meta = {key: results[key] for key in self.meta_keys if key in results}
        sample = VideoTextSample(metainfo={**meta, 'valid': not results.get('problem')})
        mask = torch.as_tensor(np.asarray(results['frame_mask']), dtype=torch.bool)
        return dict(
            inputs=dict(frames=results['frames'], frame_mask=mask, tokens=results['tokens']), data_samples=sample
        )


def _by_video(path: str, key: str) -> dict[str, np.ndarray]:
    with np.load(path) as content:
        names, rows = content['video'], content[key].astype(np.float32)
    order = np.argsort(names, kind='stable')
    found, first = np.unique(names[order], return_index=True)
    return {str(name): rows[part] for name, part in zip(found, np.split(order, first[1:]))}
