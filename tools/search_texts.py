#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find texts of a file by a question.

    python tools/search_texts.py index TEXTS.txt --model FOLDER --vectors multi
    python tools/search_texts.py query TEXTS.txt --model FOLDER --vectors multi "how does heat flow in a slab"

TEXTS holds one text a line, or JSON lines with "id" and "text". FOLDER is a text encoder of transformers
(save_pretrained). With --vectors multi each text keeps a few vectors, the means of clusters of its token vectors, and
a question is compared vector by vector; with single it keeps the mean. The index lies next to the file, is saved on
the way, and encodes only what is new or changed; its size is printed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.outputs import locked_file
from clusterplug.user_errors import run_tool


def main(arguments: list[str] | None = None) -> int:
    """Index or query; returns the exit code."""
    args = _parse(arguments)
    try:
        return {'index': _index, 'query': _query}[args.task](args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command continues', file=sys.stderr)
        return 130


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(
        dest='task', required=True, metavar='TASK', help='index or query; TASK --help lists its options'
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('texts', type=Path, help='file with one text a line, or .jsonl with "id" and "text"')
    common.add_argument('--model', required=True, help='text encoder: a folder of save_pretrained')
    common.add_argument(
        '--vectors', choices=('single', 'multi'), default='multi', help='vectors of a text (default: %(default)s)'
    )
    common.add_argument('--num-clusters', type=_positive, default=32, help='vectors of a text (default: %(default)s)')
    common.add_argument(
        '--query-clusters', type=_positive, default=8, help='vectors of a question (default: %(default)s)'
    )
    common.add_argument(
        '--max-length', type=_positive, default=256, help='tokens of a text that are read (default: %(default)s)'
    )
    common.add_argument('--index', type=Path, help='file with vectors (default: next to the texts)')
    common.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    common.add_argument('--batch-size', type=_positive, default=32, help='texts encoded at once (default: %(default)s)')
    tasks.add_parser('index', parents=[common], help='encode the texts', description='Encode the texts of a file.')
    query = tasks.add_parser('query', parents=[common], help='answer questions', description='Find texts.')
    query.add_argument('questions', nargs='+', help='what to look for; quote each question')
    query.add_argument(
        '--top', type=_positive, default=5, help='number of answers to each question (default: %(default)s)'
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got {text}')
    return int(text)


def _load(args: argparse.Namespace):
    from clusterplug.core.outputs import refuse_source_targets
    from clusterplug.retrieval.text_search import TextEncoder, read_texts

    refuse_source_targets([args.texts], [_index_path(args)])
    texts = read_texts(args.texts)
    encoder = TextEncoder(args.model, args.num_clusters, args.query_clusters, args.max_length)
    return texts, encoder.to(args.device)


def _index_path(args: argparse.Namespace) -> Path:
    return args.index or args.texts.with_name(f'{args.texts.name}.{args.vectors}.index.pt')


def _make_index(args: argparse.Namespace, texts: dict, encoder):
    from clusterplug.retrieval.search import MultiVectorIndex, VideoIndex, load_or_set_aside, model_key
    from clusterplug.retrieval.text_search import build_text_index

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    path = _index_path(args)
    with locked_file(path, say):
        previous = load_or_set_aside(path, say, MultiVectorIndex if args.vectors == 'multi' else VideoIndex)
        key = model_key(dict(num_clusters=args.num_clusters, max_length=args.max_length), model=encoder.model)
        index = build_text_index(
            encoder, texts, key, previous, vectors=args.vectors, batch_size=args.batch_size, path=path,
            say=lambda done, total: say(f'{done} of {total} texts'),
        )  # fmt: skip
    say(f'{path}: {index.describe()}')
    return index


def _index(args: argparse.Namespace) -> int:
    index = _make_index(args, *_load(args))
    print(f'{_index_path(args)}: {len(index.ids)} texts')
    return 0


def _query(args: argparse.Namespace) -> int:
    if any(not question.strip() for question in args.questions):
        raise ValueError('a question must have at least one word, got an empty one')
    texts, encoder = _load(args)
    index = _make_index(args, texts, encoder)
    for question, vectors in zip(args.questions, encoder.encode(args.questions, args.vectors, query=True)):
        print(question)
        for number, hit in enumerate(index.search(vectors, args.top), 1):
            print(f'  {number}. {hit.video_id}  {hit.score:.4f}  {texts[hit.video_id][:80]}')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'search_texts'))
