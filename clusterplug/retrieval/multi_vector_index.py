# SPDX-License-Identifier: Apache-2.0
"""An index of items that have several vectors each: candidates by encodings, exact late interaction for these."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clusterplug.core.checks import check_count
from clusterplug.core.files import whole_file
from clusterplug.core.tensor_files import load_tensors
from clusterplug.functional import chamfer_similarity, fixed_dimensional_encoding
from clusterplug.retrieval.video_index import Hit

# Items up to which all are scored exactly: below, looking for candidates first saves nothing.
EXACT_UP_TO = 2_000
ENCODING = dict(num_repetitions=10, num_bits=4, projection_dim=16, seed=0)
# Items padded to one size and scored at once.
_AT_ONCE = 1_024


class MultiVectorIndex:
    """Sets of vectors, one behind the other in fp16.

    Args:
        ids: Items.
        vectors: (sum of counts, D) floating, on the CPU; kept in fp16.
        counts: (N,) int64, vectors of each item, at least 1.
        model_key: What the vectors depend on.
        unreadable, sources, stamp: As of :class:`~clusterplug.retrieval.search.VideoIndex`.

    Raises:
        TypeError, ValueError: Parts that do not fit each other, an id twice, values that are not finite in fp16.

    Example:
        >>> index = MultiVectorIndex.of_sets(['a', 'b'], [torch.eye(2), torch.tensor([[0.5, 0.5]])])
        >>> index.search(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        [Hit(video_id='a', score=2.0), Hit(video_id='b', score=1.0)]
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: Tensor,
        counts: Tensor,
        model_key: str = '',
        unreadable: dict[str, str] | None = None,
        sources: dict[str, str] | None = None,
        stamp: str = '',
    ):
        if not isinstance(vectors, Tensor) or not vectors.is_floating_point() or vectors.dim() != 2:
            raise TypeError(f'vectors must be a floating tensor (vectors, channels), got {type(vectors).__name__}')
        if any(not isinstance(each, str) for each in ids):
            raise TypeError('ids must be texts')
        if not isinstance(counts, Tensor) or counts.dtype != torch.int64 or counts.shape != (len(ids),):
            raise ValueError(f'counts must be int64 of shape ({len(ids)},), one for each id')
        if len(set(ids)) < len(ids):
            raise ValueError('ids must differ, got one twice')
        if len(counts) and (int(counts.min()) < 1 or int(counts.sum()) != len(vectors)):
            raise ValueError(f'counts must be at least 1 and sum to {len(vectors)}, got a sum of {int(counts.sum())}')
        vectors = vectors.half()
        if not vectors.isfinite().all():
            raise ValueError('vectors must be finite in fp16, got NaN, infinity or beyond 65504; normalize them')
        self.ids, self.vectors, self.counts, self.model_key = list(ids), vectors, counts, model_key
        self.unreadable, self.sources, self.stamp = dict(unreadable or {}), dict(sources or {}), stamp
        self._first = counts.cumsum(0) - counts
        self._encodings = self._searcher = None

    @classmethod
    def of_sets(cls, ids: Sequence[str], sets: Sequence[Tensor], *rest, **named) -> 'MultiVectorIndex':
        """Make an index of one tensor (n_i, D) for each item."""
        vectors = torch.cat([each.half() for each in sets]) if len(sets) else torch.zeros(0, 0)
        return cls(ids, vectors, torch.tensor([len(each) for each in sets], dtype=torch.int64), *rest, **named)

    def sets(self) -> list[Tensor]:
        """Return one tensor (n_i, D) for each item."""
        return list(self.vectors.split(self.counts.tolist()))

    def save(self, path: str | os.PathLike) -> None:
        """Write the index, whole or not at all."""
        names = ('ids', 'vectors', 'counts', 'model_key', 'unreadable', 'sources', 'stamp')
        with whole_file(path, 'wb') as file:
            torch.save({name: getattr(self, name) for name in names}, file)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'MultiVectorIndex':
        """Read an index, as data.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file is no index of several vectors.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'no index {path}; make one with the task "index" and --vectors multi')
        try:
            return cls(**load_tensors(path))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path} is no index of several vectors ({error}); make it again') from error

    def describe(self) -> str:
        """Say how many items and vectors there are, and their bytes next to one fp32 vector an item."""
        items, dim = max(len(self.ids), 1), self.vectors.shape[1]
        size = self.vectors.nbytes
        return (
            f'{len(self.ids)} items, {len(self.vectors)} vectors ({len(self.vectors) / items:.1f} an item) of {dim} '
            f'channels in fp16: {size / 1e6:.3f} MB, {size / items:.0f} bytes an item '
            f'(one fp32 vector: {4 * dim} bytes)'
        )

    def search(self, query: Tensor, count: int = 5, num_candidates: int | None = None) -> list[Hit]:
        """Return the best items by Chamfer similarity, best first; equal scores in the order of ids.

        Args:
            query: (L, D) vectors, L >= 1.
            count: Answers, at most; at least 1.
            num_candidates: Items that are scored exactly, the best by their encodings (faiss finds them where it is
                installed). None: all of them up to 2,000, else the larger of 100 and ten times ``count``.

        Raises:
            ValueError: The query has another width, no vector or is not finite, a number is below 1, or the index is
                empty.
        """
        count = check_count(count, 'count', 1)
        if num_candidates is not None:
            num_candidates = max(check_count(num_candidates, 'num_candidates', 1), count)
        if not self.ids:
            raise ValueError('the index is empty; nothing could be read')
        if query.dim() != 2 or len(query) == 0 or query.shape[1] != self.vectors.shape[1]:
            raise ValueError(f'query must have shape (vectors, {self.vectors.shape[1]}), got {tuple(query.shape)}')
        query = query.detach().float().cpu()
        if not query.isfinite().all():
            raise ValueError('query must be finite, got NaN or infinity')
        if num_candidates is None and len(self.ids) > EXACT_UP_TO:
            num_candidates = max(100, 10 * count)
        rows = torch.arange(len(self.ids))
        if num_candidates is not None and num_candidates < len(self.ids):
            rows = self._candidates(query, num_candidates).sort().values
        scores = torch.cat([self._scores(query, part) for part in rows.split(_AT_ONCE)])
        order = scores.argsort(descending=True, stable=True)[:count]
        return [Hit(self.ids[int(rows[each])], float(scores[each])) for each in order]

    def _scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Return the exact scores of some items."""
        return chamfer_similarity(query[None], None, *self._padded(rows))[0]

    def _padded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.counts[rows]
        position = torch.arange(int(counts.max()))
        mask = position < counts[:, None]
        return self.vectors[(self._first[rows][:, None] + position).clamp(max=len(self.vectors) - 1)], mask

    def _candidates(self, query: Tensor, number: int) -> Tensor:
        """Return the items whose encodings are nearest."""
        if self._encodings is None:
            parts = torch.arange(len(self.ids)).split(_AT_ONCE)
            options = dict(is_query=False, fill_empty=True, **ENCODING)
            self._encodings = torch.cat([fixed_dimensional_encoding(*self._padded(part), **options) for part in parts])
        wanted = fixed_dimensional_encoding(query[None], is_query=True, **ENCODING)
        try:
            import faiss
        except ModuleNotFoundError:
            return (self._encodings @ wanted[0]).topk(number).indices
        if self._searcher is None:
            self._searcher = faiss.IndexFlatIP(self._encodings.shape[1])
            self._searcher.add(self._encodings.numpy())
        return torch.from_numpy(self._searcher.search(wanted.numpy(), number)[1][0])
