# SPDX-License-Identifier: Apache-2.0
"""Caption tables lose no word and no video: odd encodings, quotes, layouts; each error names file, line and content."""

import json
import pickle
import random

import pytest

from clusterplug.datasets.video import (
    read_activitynet,
    read_didemo,
    read_ids,
    read_lsmdc,
    read_msrvtt,
    read_msvd,
    read_pairs,
)


def write(tmp_path, name, content, encoding='utf-8'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def refused(read, path, *parts):
    """The error is a plain ValueError with the file and each part."""
    with pytest.raises(ValueError) as caught:
        read(path)
    assert type(caught.value) is ValueError
    for part in (str(path), *parts):
        assert part in str(caught.value)


WORDS = ['a', 'gray', 'cat,', '"so', 'said"', "it's", 'naïve', '\u2028', '7', 'end.', '$5\\x', '雨']


def test_written_by_the_csv_module_read_back_word_for_word(tmp_path):
    """Any caption that csv writes comes back, with commas, quotes and letters of any language."""
    import csv

    generator = random.Random(3)
    for trial in range(50):
        expected = {}
        path = tmp_path / f'{trial}.csv'
        with open(path, 'w', newline='', encoding=generator.choice(['utf-8', 'utf-8-sig', 'utf-16'])) as file:
            writer = csv.writer(file, lineterminator=generator.choice(['\n', '\r\n']))
            writer.writerow(['key', 'video_id', 'caption'])
            for row in range(20):
                words = ' '.join(generator.choices(WORDS, k=generator.randint(1, 6))).strip()
                words = words.strip() or 'x'
                expected.setdefault(f'v{row // 2}', []).append(words)
                writer.writerow([row, f'v{row // 2}', words])
        assert read_pairs(path) == expected


@pytest.mark.parametrize('suffix', ['json', 'jsonl', 'tsv'])
def test_written_in_other_formats(tmp_path, suffix):
    generator = random.Random(4)
    pairs = [(f'v{i}', (' '.join(generator.choices(WORDS, k=5))).strip()) for i in range(40)]
    if suffix == 'tsv':
        text = 'video\tsentence\n' + ''.join(f'{video}\t{caption}\n' for video, caption in pairs)
    else:
        entries = [json.dumps(dict(video=v, caption=c), ensure_ascii=False) for v, c in pairs]
        text = '\n'.join(entries) if suffix == 'jsonl' else f'[{",".join(entries)}]'
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        found = read_pairs(write(tmp_path, f'x.{suffix}', text, encoding))
        assert found == {video: [caption] for video, caption in pairs}


@pytest.mark.parametrize(
    ('name', 'text', 'parts'),
    [
        ('fields.csv', 'video,caption\nb,x\na,red, then blue\n', ['line 3', '2 fields', 'got 3']),
        ('few.csv', 'key,video,caption\n1,a,x\n2,b\n', ['line 3', '3 fields', 'got 2']),
        ('few.tsv', 'video\tcaption\na x\n', ['line 2', '2 fields', 'got 1']),
        ('open.csv', 'video,caption\na,x\nb,"he says\nc,z\n', ['line 3', 'unexpected end']),
        ('swallow.csv', 'video,caption\na,"open\nb,x\nc,bye"\nd,w\n', ['line 2', 'line 3 looks like a row']),
        ('swallow.csv', 'video,caption\na,"open\nb,red, then blue\nbye"\n', ['line 2', 'line 3 looks like a row']),
        ('inside.csv', 'video,caption\na,"open" he said\n', ['line 2', 'doubled']),
        ('id.tsv', 'video\tcaption\n \tx\n', ['line 2', "got ' '"]),
        ('twice.csv', 'video,caption,caption\na,x,y\n', ['line 1', 'more than one caption']),
        ('semicolon.csv', 'video;caption\na;x\n', ['line 2', "['video;caption']"]),
        ('utf16.csv', 'video,caption\na,x\n'.encode('utf-16-le'), ['line 1', 'zero byte']),
        ('latin.jsonl', '{"video": "a", "caption": "x"}\n{"video": "b", "caption": "caf\xe9"}'.encode('latin1'),
         ['line 2', '0xe9']),
        ('cut.jsonl', '{"video": "a", "caption": "x"}\n{"video": "b", "cap', ['line 2', 'must hold JSON']),
        ('list.jsonl', '{"video": "a", "caption": "x"}\n["b", "y"]\n', ['line 2', 'a list']),
        ('cut.json', '[{"video": "a"', ['must hold JSON']),
        ('twice.json', '{"a": ["x"], "b": ["z"], "a": ["y"]}', ["more than one 'a'"]),
        ('nothing.json', '{"a": ["x"], "b": []}', ['video b', 'empty list']),
        ('number.json', '{"a": 7}', ['video a', 'got 7']),
        ('null.json', '[{"video": "a", "caption": "x"}, {"video": "b", "caption": null}]', ['entry 1', 'null']),
        ('noid.json', '[{"video": null, "caption": "x"}]', ['entry 0', 'None']),
        ('float.json', '[{"video": 1.5, "caption": "x"}]', ['entry 0', '1.5']),
        ('inner.json', '{"annotations": ["x", "y"]}', ['annotations[0]', "'x'"]),
        ('half.json', '[{"video": "a", "caption": "\\ud83d"}]', ['entry 0', 'half of one']),
        ('text.json', '"a"', ['list of entries or an object']),
        ('deep.json', '[' * 100_000, ['few levels']),
        ('x.txt', 'a b', ['must end in', '.txt']),
        ('blank.csv', '\n\n', ['holds no captions']),
        ('x.parquet', 'no parquet', []),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, text, parts):
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow', reason='needs pyarrow')
    refused(read_pairs, write(tmp_path, name, text), *parts)


def test_layouts(tmp_path):
    expected = {'a': ['one', 'two'], '7': ['three']}
    rows = [dict(video_id='a', video='a.mp4', caption=['one', 'two']), dict(image_id=7, caption='three')]
    for name, content in (
        ('list.json', rows),
        ('annotations.json', dict(info={}, images=[dict(id=7)], annotations=rows)),
        ('sentences.json', dict(videos=[], sentences=rows)),
        ('ids.json', {'a': ['one', 'two'], '7': 'three'}),
    ):
        assert read_pairs(write(tmp_path, name, json.dumps(content))) == expected, name
        assert read_msrvtt(tmp_path / name) == expected, name
        assert read_msvd(tmp_path / name) == expected, name
    text = 'video_id,caption\r\na,"one ""or"" two,\r\n and more"\r\n\r\nb,it\'s 5" long\r\n'
    assert read_pairs(write(tmp_path, 'x.CSV', text)) == {'a': ['one "or" two,\n and more'], 'b': ['it\'s 5" long']}


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip('pyarrow', reason='needs pyarrow')
    from pyarrow import parquet

    table = pyarrow.table({'video_id': ['a', 'b'], 'caption': [['one', 'two'], ['three, four']], 'other': [1, 2]})
    parquet.write_table(table, tmp_path / 'x.parquet')
    assert read_pairs(tmp_path / 'x.parquet') == {'a': ['one', 'two'], 'b': ['three, four']}
    whole = (tmp_path / 'x.parquet').read_bytes()
    refused(read_pairs, write(tmp_path, 'cut.parquet', whole[: len(whole) // 2]), 'whole parquet file')


def test_splits_are_obeyed_by_every_reader(tmp_path):
    split = write(tmp_path, 'split.txt', 'b\n\na\n')
    table = write(tmp_path, 'x.csv', 'video_id,sentence\na,one\nb,two\nc,three\n')
    entries = write(tmp_path, 'x.json', json.dumps([dict(video=v, caption=v, description=v) for v in 'abc']))
    lsmdc = write(tmp_path, 'lsmdc.csv', ''.join(f'{v}\t1\t2\t3\t4\tsome words\n' for v in 'abc'))
    paragraphs = write(tmp_path, 'p.json', json.dumps({v: dict(sentences=[' x ', 'y.']) for v in 'abc'}))
    for read, path in (
        (read_msrvtt, table), (read_msrvtt, entries), (read_msvd, entries), (read_didemo, entries),
        (read_lsmdc, lsmdc), (read_activitynet, paragraphs),
    ):  # fmt: skip
        assert list(read(path, split)) == ['b', 'a'], read
        with pytest.raises(ValueError, match='names 1 videos without captions, such as z'):
            read(path, write(tmp_path, 'more.txt', 'a\nz\n'))


def test_ids(tmp_path):
    assert read_ids(write(tmp_path, 'x.txt', '\ufeffmy video.mp4\r\nb \r\n', 'utf-8')) == ['my video.mp4', 'b']
    assert read_ids(write(tmp_path, 'x.csv', 'key,video_id\n1,a\n2,"b,c"\n')) == ['a', 'b,c']
    assert read_ids(write(tmp_path, 'x.json', '["a", 3]')) == ['a', '3']
    refused(read_ids, write(tmp_path, 'y.csv', 'name\na\n'), 'line 2', "['name']")
    refused(read_ids, write(tmp_path, 'y.json', '"abc"'), "'abc'")
    refused(read_ids, write(tmp_path, 'z.json', '["a", null]'), 'entry 1', 'None')
    refused(read_ids, write(tmp_path, 'y.txt', b'a\n\xff\n'), 'line 2', '0xff')


def test_many_ids_with_one_twice(tmp_path):
    """Far too many for a comparison of each with each."""
    names = [f'video{number}' for number in range(300_000)]
    refused(read_ids, write(tmp_path, 'x.txt', '\n'.join([*names, 'video7'])), 'more than one of video7')


def test_other_formats_name_the_file(tmp_path):
    refused(read_activitynet, write(tmp_path, 'x.json', '{"v": {"timestamps": []}}'), 'video v', 'list of sentences')
    refused(read_activitynet, write(tmp_path, 'x.json', '{"v": {"sentences": ["a", 5]}}'), 'video v', '5')
    refused(read_activitynet, write(tmp_path, 'x.json', '{"v": {"sentences": ["", " "]}}'), 'video v', 'empty')
    refused(read_didemo, write(tmp_path, 'x.json', '[{"video": "a"}]'), 'entry 0', 'description')
    refused(read_lsmdc, write(tmp_path, 'x.csv', b'a\t1\t2\t3\t4\tcaf\xe9\n'), 'line 1', '0xe9')
    line = 'a\t1\t2\t3\t4\tone\u2028two\x0cthree\n'
    assert read_lsmdc(write(tmp_path, 'y.csv', line)) == {'a': ['one\u2028two\x0cthree']}
    for content in (b'no pickle', pickle.dumps([1]), pickle.dumps({'a': [['x']]})[:-4]):
        with pytest.raises(ValueError, match=r'x\.pkl'):
            read_msvd(write(tmp_path, 'x.pkl', content))
