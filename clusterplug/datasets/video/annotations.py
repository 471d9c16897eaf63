"""Annotation files of text-video data sets in their published formats: video ids and captions out."""

import csv
import json
import os
import pickle
from collections.abc import Iterable
from pathlib import Path

Captions = dict[str, list[str]]


def read_pairs(path: str | os.PathLike) -> Captions:
    """Read any table of videos and captions.

    Args:
        path: ``.csv`` or ``.tsv`` with a head line naming ``video_id`` (or ``video``) and ``caption`` (or
            ``sentence``); ``.json`` or ``.jsonl`` with entries of those names, or one object {video id: captions}.

    Returns:
        Captions of each video, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Columns are missing, or a caption is empty.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), 'pairs.csv')
        >>> _ = path.write_text('video_id,caption\\na,a dog runs\\na,a dog\\nb,rain\\n')
        >>> read_pairs(path)
        {'a': ['a dog runs', 'a dog'], 'b': ['rain']}
    """
    path = _existing(path)
    if path.suffix in ('.csv', '.tsv'):
        entries = list(_table(path, '\t' if path.suffix == '.tsv' else ','))
    elif path.suffix == '.jsonl':
        entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    else:
        entries = json.loads(path.read_text())
        if isinstance(entries, dict):
            return _grouped(((key, c) for key, value in entries.items() for c in _several(value)), path)
    pairs = []
    for entry in entries:
        video = entry.get('video_id', entry.get('video'))
        caption = entry.get('caption', entry.get('sentence'))
        if video is None or caption is None:
            raise ValueError(f'{path} must name video_id and caption (or video, sentence), got {sorted(entry)}')
        pairs += [(video, each) for each in _several(caption)]
    return _grouped(pairs, path)


def read_msrvtt(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """MSR-VTT: ``MSRVTT_data.json`` with a csv of the videos of a split, or the csv of the 1k-A test set alone.

    Args:
        path: ``MSRVTT_data.json`` (``sentences`` with ``video_id`` and ``caption``) or ``MSRVTT_JSFUSION_test.csv``
            (key, vid_key, video_id, sentence).
        split_file: A csv with a column ``video_id`` (``MSRVTT_train.9k.csv``, ``MSRVTT_train.7k.csv``).

    Raises:
        FileNotFoundError, ValueError: As :func:`read_pairs`; or a video of the split has no caption.
    """
    path = _existing(path)
    if path.suffix == '.csv':
        return read_pairs(path)
    sentences = json.loads(path.read_text())['sentences']
    captions = _grouped(((entry['video_id'], entry['caption']) for entry in sentences), path)
    return captions if split_file is None else _chosen(captions, read_ids(split_file), split_file)


def read_msvd(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """MSVD: ``raw-captions.pkl`` (video id -> lists of words) or a json, with a list of the videos of a split.

    Args:
        path: ``.pkl`` or ``.json``. A pickle is read without running code from it.
        split_file: ``train_list.txt``, ``val_list.txt`` or ``test_list.txt``.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = _existing(path)
    if path.suffix == '.pkl':
        with open(path, 'rb') as file:
            content = _PlainUnpickler(file).load()
    else:
        content = json.loads(path.read_text())
    if not isinstance(content, dict):
        return _grouped(_msvd_entries(content), path)
    single = ((key, caption) for key, value in content.items() for caption in _several(value))
    captions = _grouped(((key, ' '.join(c) if isinstance(c, list) else c) for key, c in single), path)
    return captions if split_file is None else _chosen(captions, read_ids(split_file), split_file)


def read_lsmdc(path: str | os.PathLike) -> Captions:
    """LSMDC: ``LSMDC16_annos_*.csv``, six fields with tabs between: clip, four times, sentence.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has another number of fields, with the number of the line.
    """
    path, pairs = _existing(path), []
    for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split('\t')
        if len(fields) != 6:
            raise ValueError(f'{path}, line {number} must have 6 fields with tabs between, got {len(fields)}')
        if fields[0] == '1012_Unbreakable_00.05.16.065-00.05.21.941':
            continue  # the clip that the data set itself lists as broken
        pairs.append((fields[0], fields[5]))
    return _grouped(pairs, path)


def read_activitynet(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """ActivityNet Captions: ``train.json`` or ``val_1.json``; all sentences of a video become one paragraph.

    Args:
        path: {video id: {``sentences``, ...}}.
        split_file: Ids to keep (``train_ids.json``), optional.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = _existing(path)
    content = json.loads(path.read_text())
    captions = _grouped(((key, _paragraph(value['sentences'])) for key, value in content.items()), path)
    return captions if split_file is None else _chosen(captions, read_ids(split_file), split_file)


def read_didemo(path: str | os.PathLike, split_file: str | os.PathLike | None = None) -> Captions:
    """DiDeMo: ``train_data.json`` and its like; all descriptions of a video become one paragraph.

    Args:
        path: Entries with ``video`` and ``description``.
        split_file: Ids to keep, optional.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_msrvtt`.
    """
    path = _existing(path)
    entries = json.loads(path.read_text())
    single = _grouped(((entry['video'], entry['description']) for entry in entries), path)
    captions = {video: [_paragraph(texts)] for video, texts in single.items()}
    return captions if split_file is None else _chosen(captions, read_ids(split_file), split_file)


def read_ids(path: str | os.PathLike) -> list[str]:
    """Read a list of videos: lines of a text file, the column ``video_id`` of a csv, or a list in a json.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A video is named twice.
    """
    path = _existing(path)
    if path.suffix == '.csv':
        ids = [row['video_id'] for row in _table(path, ',')]
    elif path.suffix == '.json':
        ids = list(json.loads(path.read_text()))
    else:
        ids = path.read_text().split()
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f'{path} must name each video once, got more than one of {", ".join(twice[:5])}')
    return ids


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}; docs/centerclip.md tells where each data set has its own')
    return path


def _table(path: Path, delimiter: str) -> Iterable[dict]:
    with open(path, newline='', encoding='utf-8') as file:
        yield from csv.DictReader(file, delimiter=delimiter)


def _several(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _paragraph(sentences: list[str]) -> str:
    return ' '.join(sentence.strip() for sentence in sentences if sentence.strip())


def _grouped(pairs: Iterable[tuple[str, str]], path: Path) -> Captions:
    captions: Captions = {}
    for video, caption in pairs:
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f'{path}: a caption of {video} is empty; remove it from the file')
        captions.setdefault(str(video), []).append(caption.strip())
    if not captions:
        raise ValueError(f'{path} holds no captions')
    return captions


def _chosen(captions: Captions, ids: list[str], split_file: str | os.PathLike) -> Captions:
    without = [video for video in ids if video not in captions]
    if without:
        raise ValueError(f'{split_file} names {len(without)} videos without captions, such as {", ".join(without[:3])}')
    return {video: captions[video] for video in ids}


def _msvd_entries(entries: list[dict]) -> Iterable[tuple[str, str]]:
    """Lists of entries: video ids under ``image_id``, ``video_id`` or ``video``; one caption or several."""
    for entry in entries:
        video = next((entry[key] for key in ('video_id', 'image_id', 'video') if key in entry), None)
        texts = next((entry[key] for key in ('caption', 'captions', 'sentence', 'sentences') if key in entry), None)
        if video is None or texts is None:
            raise ValueError(f'entries must name a video and captions, got {sorted(entry)}')
        yield from ((video, text) for text in _several(texts))


_PLAIN = {('collections', 'OrderedDict'), ('collections', 'defaultdict'), ('builtins', 'list'), ('builtins', 'set')}


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts and strings, and refuses everything that would run code."""

    def find_class(self, module, name):
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'captions must be plain lists and strings, got {module}.{name}')
