"""Finding videos of a folder by a sentence: features once, answers at once."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.files import whole_file
from clusterplug.datasets.video.decoding import UnreadableVideo
from clusterplug.datasets.video.stores import open_store

# Videos from which faiss, where installed, answers: 48 ms against 56 ms at 200,000 x 512; below, it saves nothing.
FAISS_FROM = 100_000


class Hit(NamedTuple):
    """One answer: the video, and its cosine similarity to the sentence."""

    video_id: str
    score: float


class VideoIndex:
    """Features of the videos of one store under one model.

    Args:
        ids (Sequence[str]): Videos.
        features (Tensor): (N, D) of length one, on the CPU.
        model_key (str): What the features depend on; features of another model are not reused.
        unreadable (dict): Videos without features, and why.

    Raises:
        ValueError: Not as many ids as features, or an id twice.
    """

    def __init__(self, ids: Sequence[str], features: Tensor, model_key: str, unreadable: dict[str, str] | None = None):
        if len(ids) != len(features):
            raise ValueError(f'ids and features must be of the same number, got {len(ids)} and {len(features)}')
        if len(set(ids)) < len(ids):
            raise ValueError('ids must differ, got one twice')
        self.ids, self.features, self.model_key = list(ids), features, model_key
        self.unreadable = dict(unreadable or {})
        self._searcher = None

    def save(self, path: str | os.PathLike) -> None:
        """Write the index, whole or not at all."""
        with whole_file(path, 'wb') as file:
            torch.save(dict(ids=self.ids, features=self.features, model_key=self.model_key,
                            unreadable=self.unreadable), file)  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'VideoIndex':
        """Read an index.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file is no index.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'no index {path}; make one with: tools/search_videos.py index')
        try:
            return cls(**torch.load(path, weights_only=True))
        except Exception as error:
            raise ValueError(f'{path} is no video index ({error}); make it again') from error

    def search(self, query: Tensor, count: int = 5) -> list[Hit]:
        """Return the best videos, best first; equal scores in the order of ids.

        Args:
            query: (D,) feature of a sentence.
            count: Answers, at most.

        Raises:
            ValueError: The query has another width, or the index is empty.
        """
        if not self.ids:
            raise ValueError('the index is empty; no video of the folder could be read')
        if query.shape != self.features.shape[1:]:
            raise ValueError(f'query must have shape {tuple(self.features.shape[1:])}, got {tuple(query.shape)}')
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


@torch.no_grad()
def build_index(
    model: nn.Module,
    videos: str | os.PathLike,
    pipeline: Callable[[dict], dict],
    model_key: str,
    previous: VideoIndex | None = None,
    batch_size: int = 8,
    say: Callable[[int, int], None] | None = None,
) -> VideoIndex:
    """Encode the videos of a folder, zip or LMDB.

    Args:
        model: A :class:`~clusterplug.retrieval.CenterCLIP` on its device; evaluated, not trained.
        videos: What :func:`~clusterplug.datasets.video.open_store` takes.
        pipeline: Steps of a test pipeline from ``store`` and ``video_id`` to ``frames`` and ``frame_mask``.
        model_key: See :func:`model_key`.
        previous: An index whose features are taken over where model and video are the same.
        batch_size: Videos at once.
        say: Called with videos done and videos in all.

    Returns:
        The index.

    Raises:
        ValueError: There is no video.
    """
    store = open_store(videos)
    ids = store.ids()
    if not ids:
        raise ValueError(f'{videos} holds no video')
    known = {}
    if previous is not None and previous.model_key == model_key:
        known = dict(zip(previous.ids, previous.features))
    features, problems = {}, {}
    model.eval()
    new = [video_id for video_id in ids if video_id not in known]
    for first in range(0, len(new), batch_size):
        batch = []
        for video_id in new[first : first + batch_size]:
            try:
                batch.append((video_id, pipeline(dict(store=store, video_id=video_id, test_mode=True))))
            except UnreadableVideo as error:
                problems[video_id] = str(error)
        if batch:
            encoded = _encode(model, [item for _, item in batch])
            features |= dict(zip((video_id for video_id, _ in batch), encoded))
        if say is not None:
            say(len(ids) - len(new) + min(first + batch_size, len(new)), len(ids))
    done = [video_id for video_id in ids if video_id in features or video_id in known]
    rows = [features[video_id] if video_id in features else known[video_id] for video_id in done]
    return VideoIndex(done, torch.stack(rows) if rows else torch.zeros(0, 0), model_key, problems)


@torch.no_grad()
def encode_sentences(model: nn.Module, sentences: Sequence[str], tokenize: Callable[[dict], dict]) -> Tensor:
    """Features (N, D) of sentences, of length one.

    Raises:
        ValueError: A sentence is empty.
    """
    if any(not sentence.strip() for sentence in sentences):
        raise ValueError('a query must have at least one word, got an empty one')
    model.eval()
    tokens = tokenize(dict(captions=list(sentences)))['tokens']
    return F.normalize(model.encode_text(tokens.to(_device(model))).float(), dim=-1).cpu()


def model_key(config: dict, checkpoint: str | os.PathLike | None) -> str:
    """Name what features depend on: the settings of model and pipeline, and the checkpoint's size and time."""
    file = Path(checkpoint).stat() if checkpoint else None
    content = [config, None if file is None else [file.st_size, file.st_mtime_ns]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _encode(model: nn.Module, items: Iterable[dict]) -> Tensor:
    items = list(items)
    tokens = [torch.zeros(1, 1, dtype=torch.int64)] * len(items)
    inputs = dict(
        frames=[item['frames'] for item in items],
        frame_mask=[torch.as_tensor(item['frame_mask'], dtype=torch.bool) for item in items],
        tokens=tokens,
    )
    batch = model.data_preprocessor(dict(inputs=inputs), False)['inputs']
    return model.encode_video(batch['frames'], batch['frame_mask']).float().cpu()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
