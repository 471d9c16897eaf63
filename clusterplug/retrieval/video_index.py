# SPDX-License-Identifier: Apache-2.0
"""The index of a store's videos: features, and what they were made of."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import whole_number
from clusterplug.core.files import whole_file
from clusterplug.core.tensor_files import load_tensors

# Videos from which faiss, where installed, answers: 48 ms against 56 ms at 200,000 x 512; below, it saves nothing.
FAISS_FROM = 100_000


class Hit(NamedTuple):
    """One answer: the video, and its cosine similarity to the sentence."""

    video_id: str
    score: float


class VideoIndex:
    """Features of the videos of one store under one model.

    Args:
        ids: Videos.
        features: (N, D) of length one, on the CPU.
        model_key: What the features depend on; features of another model are not reused.
        unreadable: Videos without features, and why.
        sources: Fingerprint of each video's content; features of a video without one, or with another one, are
            not reused.
        stamp: State of the whole store, where it has one, as :meth:`VideoStore.stamp` returns it.

    Raises:
        TypeError: Features are no floating tensor, or ids no texts.
        ValueError: Not as many ids as features, an id twice, or features that are not finite.
    """

    def __init__(
        self,
        ids: Sequence[str],
        features: Tensor,
        model_key: str,
        unreadable: dict[str, str] | None = None,
        sources: dict[str, str] | None = None,
        stamp: str = '',
    ):
        if not isinstance(features, Tensor) or not features.is_floating_point() or features.dim() != 2:
            raise TypeError(f'features must be a floating tensor (videos, channels), got {type(features).__name__}')
        if any(not isinstance(video_id, str) for video_id in ids):
            raise TypeError('ids must be texts')
        if len(ids) != len(features):
            raise ValueError(f'ids and features must be of the same number, got {len(ids)} and {len(features)}')
        if len(set(ids)) < len(ids):
            raise ValueError('ids must differ, got one twice')
        if not features.isfinite().all():
            raise ValueError('features must be finite, got NaN or infinity')
        self.ids, self.features, self.model_key = list(ids), features, model_key
        self.unreadable, self.sources, self.stamp = dict(unreadable or {}), dict(sources or {}), stamp
        self._searcher = None

    def save(self, path: str | os.PathLike) -> None:
        """Write the index, whole or not at all."""
        names = ('ids', 'features', 'model_key', 'unreadable', 'sources', 'stamp')
        with whole_file(path, 'wb') as file:
            torch.save({name: getattr(self, name) for name in names}, file)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'VideoIndex':
        """Read an index, as data.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file is no index.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'no index {path}; make one with: tools/search_videos.py index')
        try:
            return cls(**load_tensors(path))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path} is no video index ({error}); make it again') from error

    def describe(self) -> str:
        """Say how many features there are, and their bytes."""
        number, dim = self.features.shape
        return f'{number} items, one vector of {dim} channels each: {self.features.nbytes / 1e6:.3f} MB'

    def search(self, query: Tensor, count: int = 5) -> list[Hit]:
        """Return the best videos, best first; equal scores in the order of ids.

        Args:
            query: (D,) feature of a sentence.
            count: Answers, at most; at least 1.

        Raises:
            ValueError: The query has another width or is not finite, ``count`` is below 1, or the index is empty.
        """
        whole_number('count', count)
        if not self.ids:
            raise ValueError('the index is empty; no video of the folder could be read')
        if query.shape != self.features.shape[1:]:
            raise ValueError(f'query must have shape {tuple(self.features.shape[1:])}, got {tuple(query.shape)}')
        if not query.isfinite().all():
            raise ValueError('query must be finite, got NaN or infinity')
        count = min(count, len(self.ids))
        scores, rows = self._best(F.normalize(query.detach().float().cpu(), dim=0), count)
        order = sorted(zip(rows, scores), key=lambda pair: (-pair[1], pair[0]))
        return [Hit(self.ids[row], score) for row, score in order]

    def _best(self, query: Tensor, count: int) -> tuple[list[float], list[int]]:
        if len(self.ids) >= FAISS_FROM:
            try:
                import faiss
            except ModuleNotFoundError:
                pass
            else:
                if self._searcher is None:
                    self._searcher = faiss.IndexFlatIP(self.features.shape[1])
                    self._searcher.add(self.features.numpy())
                found = self._searcher.search(query[None].numpy(), count)
                return found[0][0].tolist(), found[1][0].tolist()
        scores, rows = (self.features @ query).topk(count)
        return scores.tolist(), rows.tolist()
