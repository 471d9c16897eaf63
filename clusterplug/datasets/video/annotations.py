# SPDX-License-Identifier: Apache-2.0
"""Annotation files of text-video data sets in their published formats: video ids and captions out."""

import io
import os
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from clusterplug.datasets.video.tables import (
    CAPTION_KEYS,
    VIDEO_KEYS,
    Entry,
    caption_text,
    csv_rows,
    existing,
    field,
    read_entries,
    read_json,
    read_text,
    video_name,
)

Captions = dict[str, list[str]]


def read_pairs(path: str | os.PathLike) -> Captions:
    """Read any table of videos and captions.

    Text is UTF-8, or UTF-16 with a byte order mark. In a ``.csv``, fields with commas or quotes stand in quotes; in a
    ``.tsv`` a quote is a letter as any other. Nothing is passed over: a row that cannot be read is an error.

    Args:
        path: ``.csv`` or ``.tsv`` with a head line naming ``video_id`` (or ``video``) and ``caption`` (or
            ``sentence``); ``.json``, ``.jsonl`` or ``.parquet`` (with pyarrow) with entries of those names, one
            caption or a list of them in each; a ``.json`` may also hold its entries under ``annotations``,
            ``sentences``, ``data`` or ``rows``, or be one object {video id: captions}.

    Returns:
        Captions of each video, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: A parquet file without pyarrow.
        ValueError: Something in the file is not as above, with the file and the line or entry.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), 'pairs.csv')
        >>> _ = path.write_text('video_id,caption\\na,a dog runs\\na,a dog\\nb,rain\\n')
        >>> read_pairs(path)
        {'a': ['a dog runs', 'a dog'], 'b': ['rain']}
    """
    path = existing(path)
    return _grouped(_pairs(read_entries(path), path), path)


def read_msrvtt(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """MSR-VTT: ``MSRVTT_data.json`` with a csv of the videos of a split, or the csv of the 1k-A test set alone.

    Args:
        path: ``MSRVTT_data.json`` (``sentences`` with ``video_id`` and ``caption``), ``MSRVTT_JSFUSION_test.csv``
            (key, vid_key, video_id, sentence), or any table of :func:`read_pairs`.
        split_file: A csv with a column ``video_id`` (``MSRVTT_train.9k.csv``, ``MSRVTT_train.7k.csv``).

    Raises:
        FileNotFoundError, ValueError: As :func:`read_pairs`; or a video of the split has no caption.
    """
    return chosen(read_pairs(path), split_file)


def read_msvd(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """MSVD: ``raw-captions.pkl`` (video id -> lists of words) or a json, with a list of the videos of a split.

    Args:
        path: ``.pkl``, or a table of :func:`read_pairs`. A pickle is read without running code from it.
        split_file: ``train_list.txt``, ``val_list.txt`` or ``test_list.txt``.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = existing(path)
    content = _read_pickle(path) if path.suffix.lower() == '.pkl' else read_entries(path)
    if isinstance(content, dict):
        content = {video: [_joined(text) for text in _several(texts)] for video, texts in content.items()}
    return chosen(_grouped(_pairs(content, path), path), split_file)


def read_lsmdc(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """LSMDC: ``LSMDC16_annos_*.csv``, six fields with tabs between: clip, four times, sentence.

    The clip that the data set itself lists as broken is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has another number of fields, with the number of the line.
    """
    path, pairs = existing(path), []
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if not line.strip():
            continue
        fields = line.split('\t')
        if len(fields) != 6:
            raise ValueError(f'{path}, line {number} must have 6 fields with tabs between, got {len(fields)}')
        if fields[0] != '1012_Unbreakable_00.05.16.065-00.05.21.941':
            pairs.append((f'{path}, line {number}', fields[0], fields[5]))
    return chosen(_grouped(pairs, path), split_file)


def read_activitynet(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """ActivityNet Captions: ``train.json`` or ``val_1.json``; all sentences of a video become one paragraph.

    Args:
        path: {video id: {``sentences``, ...}}.
        split_file: Ids to keep (``train_ids.json``), optional.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = existing(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold one object {{video id: {{sentences: [...]}}}}, got a list')
    pairs = []
    for video, value in content.items():
        where = f'{path}, video {_printable(video)}'
        sentences = value.get('sentences') if isinstance(value, dict) else None
        if not isinstance(sentences, list):
            raise ValueError(f'{where} must have a list of sentences, got {str(value)[:60]}')
        pairs.append((where, video, _paragraph(sentences, where)))
    return chosen(_grouped(pairs, path), split_file)


def read_didemo(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """DiDeMo: ``train_data.json`` and its like; all descriptions of a video become one paragraph.

    Args:
        path: Entries with ``video`` and ``description``.
        split_file: Ids to keep, optional.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = existing(path)
    entries = read_entries(path)
    if isinstance(entries, dict):
        raise ValueError(f'{path} must hold a list of entries with video and description, got an object')
    single = _grouped(
        ((e.where, field(e, ('video',), 'video'), field(e, ('description',), 'description')) for e in entries), path
    )
    captions = {video: [' '.join(texts)] for video, texts in single.items()}
    return chosen(captions, split_file)


def read_ids(path: str | os.PathLike) -> list[str]:
    """Read a list of videos: lines of a text file, the column ``video_id`` of a csv, or a list in a json.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A video is named twice or has no name, or the file has another layout.
    """
    path = existing(path)
    suffix = path.suffix.lower()
    if suffix == '.csv':
        ids = [(e.where, field(e, ('video_id',), 'a column video_id')) for e in csv_rows(path)]
    elif suffix == '.json':
        content = read_json(path)
        if not isinstance(content, list | dict):
            raise ValueError(f'{path} must hold a list of video ids, got {str(content)[:60]!r}')
        ids = [(f'{path}, entry {number}', value) for number, value in enumerate(content)]
    else:
        lines = enumerate(read_text(path).split('\n'), 1)
        ids = [(f'{path}, line {number}', line) for number, line in lines if line.strip()]
    names = Counter(video_name(value, where) for where, value in ids)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f'{path} must name each video once, got more than one of {", ".join(twice[:5])}')
    return list(names)


def chosen(captions: Captions, split_file: str | os.PathLike | None) -> Captions:
    """Return the captions of the videos that a split names, in its order; all without a split."""
    if split_file is None:
        return captions
    ids = read_ids(split_file)
    without = [video for video in ids if video not in captions]
    if without:
        raise ValueError(f'{split_file} names {len(without)} videos without captions, such as {", ".join(without[:3])}')
    return {video: captions[video] for video in ids}


def _pairs(content: list[Entry] | dict, path: Path) -> Iterable[tuple[str, object, object]]:
    if isinstance(content, dict):
        groups = [(f'{path}, video {_printable(video)}', video, texts) for video, texts in content.items()]
    else:
        names = 'video_id and caption'
        groups = [(each.where, field(each, VIDEO_KEYS, names), field(each, CAPTION_KEYS, names)) for each in content]
    for where, video, texts in groups:
        texts = _several(texts)
        if not texts:
            raise ValueError(f'{where} must have a caption, got an empty list')
        yield from ((where, video, text) for text in texts)


def _printable(video: object) -> str:
    return str(video).encode('utf-8', 'backslashreplace').decode()


def _several(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _joined(words: object) -> object:
    """Put a caption that is a list of words together; anything else stays for the check of captions."""
    if isinstance(words, list | tuple) and words and all(isinstance(word, str) for word in words):
        return ' '.join(words)
    return words


def _paragraph(sentences: list, where: str) -> str:
    if any(not isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f'{where} must have sentences of text, got {str(sentences)[:60]}')
    return ' '.join(sentence.strip() for sentence in sentences if sentence.strip())


def _grouped(pairs: Iterable[tuple[str, object, object]], path: Path) -> Captions:
    captions: Captions = {}
    for where, video, text in pairs:
        name = video_name(video, where)
        captions.setdefault(name, []).append(caption_text(text, f'{where}: a caption of {name}'))
    if not captions:
        raise ValueError(f'{path} holds no captions')
    return captions


_PLAIN = {
    (module, name)
    for module, names in (
        ('collections', ('OrderedDict', 'defaultdict')),
        ('builtins', ('list', 'set')),
        ('__builtin__', ('list', 'set')),  # Python 2, which the published file is from
    )
    for name in names
}


class _RefusedPickle(pickle.UnpicklingError, ValueError):
    """A pickle that holds more than plain captions, or is damaged."""


class _PlainUnpickler(pickle._Unpickler):
    """Reads lists, dicts and strings, and refuses everything that would run code.

    The unpickler in Python: the memo of the other one grows to any index that the file names.
    """

    # bytes that can be changed are no captions, and as much memory is taken for them as the file claims
    dispatch = {code: method for code, method in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    def find_class(self, module, name):
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'captions must be plain lists and strings, got {module}.{name}')


def _read_pickle(path: Path) -> dict:
    try:
        # From memory, where no more is read than there is, whatever length the file claims.
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding='utf-8').load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _RefusedPickle(f'{path} must be a pickle of captions: {error}') from error
    if not isinstance(content, dict):
        raise _RefusedPickle(f'{path} must hold {{video id: captions}}, got {type(content).__name__}')
    return content
