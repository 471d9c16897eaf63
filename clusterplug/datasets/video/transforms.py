"""Pipeline steps from a video in a store and its captions to tensors."""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F

from clusterplug.datasets.video import tokenizers
from clusterplug.datasets.video.sampling import sample_frames
from clusterplug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadVideoFrames:
    """Decode T frames of the video ``video_id`` of ``store``.

    Adds ``frames`` (T, H, W, 3) uint8, ``frame_mask`` (T,) bool and ``frame_times`` (seconds, or numbers of frames
    where the video has no rate). When ``problem`` is set, the video could not be read: black frames and an empty mask.

    Args:
        num_frames (int): T. Defaults to 12.
        sampling (str): ``'random'``, ``'middle'`` of equal chunks, or ``'auto'``: random in training. Defaults to auto.
        backend (str): ``'auto'``, ``'decord'``, ``'pyav'`` or ``'torchcodec'``. Defaults to ``'auto'``.
        max_seconds (float, optional): Only the beginning of the video, of this length.
        cache_bytes (int): Whole decoded videos are kept in each worker up to this size. Defaults to 0.

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
        self.num_frames, self.sampling, self.backend = num_frames, sampling, backend
        self.max_seconds, self.cache_bytes = max_seconds, cache_bytes
        self._cache, self._cached = OrderedDict(), 0

    def __call__(self, results: dict) -> dict:
        """Load; raises :class:`~clusterplug.datasets.video.UnreadableVideo`."""
        if results.get('problem'):
            results['frames'] = np.zeros((self.num_frames, 32, 32, 3), np.uint8)
            results['frame_mask'] = np.zeros(self.num_frames, bool)
            results['frame_times'] = []
            return results
        random = self.sampling == 'random' or (self.sampling == 'auto' and not results.get('test_mode', False))
        frames, indices, mask, rate = self._load(results['store'], results['video_id'], random)
        results['frames'], results['frame_mask'] = frames, mask
        results['frame_times'] = [round(float(index) / (rate or 1), 3) for index in indices]
        return results

    def _load(self, store, video_id: str, random: bool):
        if video_id in self._cache:
            everything, rate = self._cache[video_id]
            indices, mask = sample_frames(self._limit(len(everything), rate), self.num_frames, random)
            return everything[indices], indices, mask, rate
        video = store.open(video_id, self.backend)
        indices, mask = sample_frames(self._limit(video.length, video.rate), self.num_frames, random)
        if not self.cache_bytes:
            return video.frames(indices), indices, mask, video.rate
        everything = video.frames(range(video.length))
        if self._cached + everything.nbytes <= self.cache_bytes:
            self._cache[video_id], self._cached = (everything, video.rate), self._cached + everything.nbytes
        return everything[indices], indices, mask, video.rate

    def _limit(self, length: int, rate: float) -> int:
        if self.max_seconds is None or not rate:
            return length
        return max(1, min(length, round(self.max_seconds * rate)))


@TRANSFORMS.register_module()
class ResizeAndCrop:
    """Shorter side to ``size`` (bicubic with antialiasing), then the middle ``size`` x ``size``.

    Turns ``frames`` into a (T, 3, size, size) uint8 tensor.

    Args:
        size (int): Pixels. Defaults to 224.
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
        video_file (str): npz with ``feat`` (N, C) and ``video`` (N,), rows of a video in the order of time.
        text_file (str): npz with ``text`` (M, C') and ``video`` (M,), rows of a video in the order of its captions.
        num_frames (int): T. Defaults to 12.
        sampling (str): As :class:`LoadVideoFrames`.
    """

    def __init__(self, video_file: str, text_file: str, num_frames: int = 12, sampling: str = 'auto'):
        self.num_frames, self.sampling = num_frames, sampling
        self._features = _by_video(video_file, 'feat')
        self._texts = _by_video(text_file, 'text')

    def __call__(self, results: dict) -> dict:
        """Load; raises :class:`~clusterplug.datasets.video.UnreadableVideo`."""
        from clusterplug.datasets.video.decoding import UnreadableVideo

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
        tokenizer (dict): ``type`` ``'CLIPTokenizer'`` or ``'WordTokenizer'`` and its arguments.
        max_words (int): Ids of each caption, start and end among them. Defaults to 32.

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
        from clusterplug.retrieval.data import VideoTextSample

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
