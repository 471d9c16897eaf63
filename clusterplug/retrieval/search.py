# SPDX-License-Identifier: Apache-2.0
"""Finding videos of a folder by a sentence: features once, answers at once."""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, whole_number
from clusterplug.datasets.video.decoding import UnreadableVideo
from clusterplug.datasets.video.stores import VideoStore, open_store
from clusterplug.retrieval.multi_vector_index import MultiVectorIndex
from clusterplug.retrieval.video_index import Hit, VideoIndex

__all__ = [
    'Hit',
    'MultiVectorIndex',
    'VideoIndex',
    'build_index',
    'encode_sentences',
    'load_or_set_aside',
    'model_key',
    'untrained_parts',
]

# An index on the way is saved after each batch, or where that takes long, so that saving takes a tenth of the time.
_QUICK = 0.05


@torch.no_grad()
def build_index(
    model: nn.Module,
    videos: str | os.PathLike,
    pipeline: Callable[[dict], dict],
    model_key: str,
    previous: VideoIndex | None = None,
    batch_size: int = 8,
    say: Callable[[int, int], None] | None = None,
    path: str | os.PathLike | None = None,
    vectors: str = 'single',
) -> VideoIndex | MultiVectorIndex:
    """Encode the videos of a folder, zip or LMDB.

    Args:
        model: A :class:`~clusterplug.retrieval.CenterCLIP` on its device; evaluated, not trained.
        videos: What :func:`~clusterplug.datasets.video.open_store` takes.
        pipeline: Steps of a test pipeline from ``store`` and ``video_id`` to ``frames`` and ``frame_mask``.
        model_key: See :func:`model_key`.
        previous: An index whose features are taken over where the model and the content of the video are the same.
        batch_size: Videos at once.
        say: Called with videos done and videos in all.
        path: File that the index is saved in: on the way, at the end, and when something stops it.
        vectors: 'single', or 'multi' for several vectors a video, by ``model.encode_video_vectors``.

    Returns:
        The index. What stops the work carries the index so far as its attribute ``index``.

    Raises:
        ValueError: There is no video, ``batch_size`` is below 1, or ``vectors`` unknown.
    """
    multi = check_choice(vectors, 'vectors', ('single', 'multi')) == 'multi'
    whole_number('batch_size', batch_size)
    store = open_store(videos)
    ids = store.ids()
    if not ids:
        raise ValueError(f'{videos} holds no video')
    work = _Work(store, ids, model_key, previous, path, multi)
    training = model.training
    model.eval()
    try:
        for first in range(0, len(work.new), batch_size):
            batch = []
            for video_id in work.new[first : first + batch_size]:
                try:
                    batch.append((video_id, pipeline(dict(store=store, video_id=video_id, test_mode=True))))
                except UnreadableVideo as error:
                    work.problems[video_id] = str(error)
            if batch:
                work.add([video_id for video_id, _ in batch], _encode(model, [item for _, item in batch], multi))
            work.save_if_quick()
            if say is not None:
                say(len(ids) - len(work.new) + min(first + batch_size, len(work.new)), len(ids))
    except BaseException as error:
        error.index = work.index()
        with contextlib.suppress(OSError):  # what stopped the work is what is told
            work.save()
        raise
    finally:
        model.train(training)
    work.save()
    return work.index()


class _Work:
    """Features that are there, those that are new, and the file they are kept in."""

    def __init__(self, store: VideoStore, ids: list[str], key: str, previous, path, multi: bool):
        self.ids, self.key, self.path, self.problems, self.multi = ids, key, path, {}, multi
        known = {}
        if isinstance(previous, MultiVectorIndex if multi else VideoIndex) and previous.model_key == key:
            known = dict(zip(previous.ids, previous.sets() if multi else previous.features))
        self.stamp = store.stamp()
        self.sources = self._sources(store, previous)
        same = {} if previous is None else previous.sources
        self.features = {
            video_id: feature
            for video_id, feature in known.items()
            if video_id in self.sources and self.sources[video_id] == same.get(video_id)
        }
        self.new = [video_id for video_id in ids if video_id in self.sources and video_id not in self.features]
        self._saved = -float('inf'), 0.0

    def _sources(self, store: VideoStore, previous) -> dict[str, str]:
        # A store that is as it was need not be read as a whole again.
        same = {} if previous is None or not self.stamp or previous.stamp != self.stamp else previous.sources
        found = {}
        for video_id in self.ids:
            try:
                found[video_id] = same[video_id] if video_id in same else store.fingerprint(video_id)
            except UnreadableVideo as error:
                self.problems[video_id] = str(error)
        return found

    def add(self, ids: list[str], features: Sequence[Tensor]) -> None:
        for video_id, feature in zip(ids, features):
            if len(feature) == 0:
                self.problems[video_id] = 'it has no frame, so no vector'
            elif feature.isfinite().all():
                self.features[video_id] = feature
            else:
                self.problems[video_id] = 'its features are not finite'

    def index(self) -> VideoIndex | MultiVectorIndex:
        done = [video_id for video_id in self.ids if video_id in self.features]
        if self.multi:
            sets, sources = [self.features[each] for each in done], {each: self.sources[each] for each in done}
            return MultiVectorIndex.of_sets(done, sets, self.key, self.problems, sources, self.stamp)
        features = torch.stack([self.features[video_id] for video_id in done]) if done else torch.zeros(0, 0)
        sources = {video_id: self.sources[video_id] for video_id in done}
        return VideoIndex(done, features, self.key, self.problems, sources, self.stamp)

    def save(self) -> None:
        if self.path is not None:
            self.index().save(self.path)

    def save_if_quick(self) -> None:
        ended, took = self._saved
        start = time.monotonic()
        if took < _QUICK or start - ended > 10 * took:
            self.save()
            self._saved = time.monotonic(), time.monotonic() - start


@torch.no_grad()
def encode_sentences(
    model: nn.Module, sentences: Sequence[str], tokenize: Callable[[dict], dict], vectors: str = 'single'
) -> Tensor | list[Tensor]:
    """Features (N, D) of sentences, of length one; with ``vectors='multi'`` a list of N tensors (n_i, D).

    Words that the vocabulary of ``tokenize.tokenizer`` lacks are named in a warning.

    Raises:
        ValueError: A sentence is empty, or the vocabulary has none of its words.
    """
    if any(not sentence.strip() for sentence in sentences):
        raise ValueError('a query must have at least one word, got an empty one')
    multi = check_choice(vectors, 'vectors', ('single', 'multi')) == 'multi'
    _check_words(sentences, getattr(tokenize, 'tokenizer', None))
    training = model.training
    model.eval()
    try:
        tokens = tokenize(dict(captions=list(sentences)))['tokens']
        tokens = tokens.to(_device(model))
        if multi:
            return _sets(*model.encode_text_vectors(tokens))
        return F.normalize(model.encode_text(tokens).float(), dim=-1).cpu()
    finally:
        model.train(training)


def _check_words(sentences: Sequence[str], tokenizer) -> None:
    unknown_words = getattr(tokenizer, 'unknown_words', None)
    if unknown_words is None:
        return
    from clusterplug.datasets.video.tokenizers import words_of

    for sentence in sentences:
        unknown = unknown_words(sentence)
        if unknown and len(unknown) == len(words_of(sentence)):
            raise ValueError(
                f'a query must have words that the model knows, got {sentence!r}: none is in the vocabulary'
            )
        if unknown:
            warnings.warn(f'not in the vocabulary of the model: {", ".join(sorted(set(unknown)))}', stacklevel=3)


def untrained_parts(model: nn.Module) -> list[str]:
    """Parts of a :class:`~clusterplug.retrieval.CenterCLIP` that hold random weights until a checkpoint is loaded.

    Encoders without ``pretrained`` weights, and a head with parameters. Answers of such a model are random.
    """
    parts = [] if getattr(model.encoders, 'pretrained', False) else ['encoders']
    return parts + (['head'] if any(True for _ in model.head.parameters()) else [])


def model_key(config: dict, checkpoint: str | os.PathLike | None = None, model: nn.Module | None = None) -> str:
    """Name what features depend on: the settings of model and pipeline, and the weights.

    Args:
        config: Settings.
        checkpoint: File of the weights; its size and time count.
        model: The model with its weights: their values count, wherever they came from. Then no file is needed.
    """
    content = [config, None]
    if model is not None:
        content[1] = _weights_digest(model)
    elif checkpoint:
        file = Path(checkpoint).stat()
        content[1] = [file.st_size, file.st_mtime_ns]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_or_set_aside(
    path: str | os.PathLike, say: Callable[[str], None], kind: type = VideoIndex
) -> VideoIndex | MultiVectorIndex | None:
    """Read an index; a file that is none is renamed, so that nothing is lost when the index is computed again.

    Args:
        path: The file; it need not exist.
        say: Called with what was renamed, and why.
        kind: ``VideoIndex`` or ``MultiVectorIndex``.

    Returns:
        The index, or None.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        return kind.load(path)
    except ValueError as error:
        numbers = ('', *(f'.{number}' for number in range(1, 1000)))
        aside = next(p for p in (path.with_name(f'{path.name}.unreadable{n}') for n in numbers) if not p.exists())
        os.rename(path, aside)
        say(f'{error}. It is computed again; the file is now {aside}')
        return None


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(model: nn.Module, items: Iterable[dict], multi: bool) -> Sequence[Tensor]:
    """Return a feature (D,) of length one for each video, or the vectors (n_i, D) of each."""
    items = list(items)
    tokens = [torch.zeros(1, 1, dtype=torch.int64)] * len(items)
    inputs = dict(
        frames=[item['frames'] for item in items],
        frame_mask=[torch.as_tensor(item['frame_mask'], dtype=torch.bool) for item in items],
        tokens=tokens,
    )
    batch = model.data_preprocessor(dict(inputs=inputs), False)['inputs']
    if multi:
        return _sets(*model.encode_video_vectors(batch['frames'], batch['frame_mask']))
    return F.normalize(model.encode_video(batch['frames'], batch['frame_mask']).float().cpu(), dim=-1)


def _sets(vectors: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the valid vectors of each item on the CPU."""
    return [rows[valid] for rows, valid in zip(vectors.float().cpu(), mask.cpu())]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
