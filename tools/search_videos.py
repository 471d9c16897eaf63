#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find videos of a folder by a sentence.

    python tools/search_videos.py index FOLDER --config CONFIG --checkpoint CKPT
    python tools/search_videos.py query FOLDER --config CONFIG --checkpoint CKPT "a dog runs on grass" --sheet hits.png
    python tools/search_videos.py tokens FOLDER --config CONFIG --checkpoint CKPT VIDEO --out pictures

FOLDER may also be a zip or an LMDB. index encodes each video once and keeps the features next to the folder
(FOLDER.index.pt, or --index), also on the way: stopped, it continues where it was. query does so by itself when
videos are new or were replaced. tokens draws which tokens of a video the model keeps, and its segments.

With --vectors multi each video keeps several vectors (of its frames, segments or patches: "vectors" of the model's
config) and a sentence is compared vector by vector; that index is a file of its own (FOLDER.multi.index.pt).

Without --checkpoint the pretrained encoders of the config answer; a model of random weights does not.
"""

import argparse
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.outputs import locked_file
from clusterplug.user_errors import run_tool


def main(arguments: list[str] | None = None) -> int:
    """Index, query or draw; returns the exit code."""
    args = _parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f'warning: {message}', file=sys.stderr)
            _check_targets(args)
            return {'index': _index, 'query': _query, 'tokens': _tokens}[args.task](args)
    except (OSError, ValueError, ModuleNotFoundError, pickle.UnpicklingError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command continues', file=sys.stderr)
        return 130


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(
        dest='task', required=True, metavar='TASK', help='index, query or tokens; TASK --help lists its options'
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('videos', type=Path, help='folder, zip or LMDB of videos')
    common.add_argument('--config', required=True, help='config of the model: a path, or package::path')
    common.add_argument('--checkpoint', help='trained weights (default: the pretrained encoders of the config)')
    common.add_argument('--random-weights', action='store_true', help='answer although weights are random (for tests)')
    common.add_argument(
        '--vectors', choices=('single', 'multi'), default='single', help='vectors of a video (default: %(default)s)'
    )
    common.add_argument('--index', type=Path, help='file with features (default: next to the videos)')
    common.add_argument('--device', help='cpu or cuda (default: cuda where there is one)')
    common.add_argument('--batch-size', type=_positive, default=8, help='videos encoded at once (default: %(default)s)')
    common.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='replace values of the config (default: none)',
    )
    tasks.add_parser('index', parents=[common], help='encode the videos', description='Encode the videos of a folder.')
    query = tasks.add_parser(
        'query', parents=[common], help='answer sentences', description='Find videos by sentences.'
    )
    query.add_argument('sentences', nargs='+', help='what to look for; quote each sentence')
    query.add_argument(
        '--top', type=_positive, default=5, help='number of answers to each sentence (default: %(default)s)'
    )
    query.add_argument('--sheet', type=Path, help='draw the answers into this PNG (default: no picture)')
    tokens = tasks.add_parser(
        'tokens',
        parents=[common],
        help='draw the kept tokens of a video',
        description='Draw the kept tokens of a video.',
    )
    tokens.add_argument('video', help='id: the name of the file without its suffix')
    tokens.add_argument(
        '--out', type=Path, default=Path('pictures'), help='folder for the pictures (default: %(default)s)'
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got {text}')
    return int(text)


def _check_targets(args: argparse.Namespace) -> None:
    from clusterplug.core.outputs import refuse_source_targets

    targets = [_index_path(args)] if args.task != 'tokens' else [args.out]
    targets += [args.sheet] if args.task == 'query' and args.sheet else []
    refuse_source_targets([args.videos, args.config, *([args.checkpoint] if args.checkpoint else [])], targets)


class _Loaded(NamedTuple):
    """The model on its device, the pipeline up to frames, the step that tokenizes, what the features depend on."""

    model: object
    pipeline: object
    tokenize: object
    settings: list


def _load(args: argparse.Namespace) -> _Loaded:
    from clusterplug.cli import load_config
    from clusterplug.registry import MODELS, TRANSFORMS

    device = _device(args.device)
    config = load_config(args.config, args.cfg_options)
    if not config.get('model') or not config.get('test_dataloader'):
        raise ValueError(f'{args.config} must have a model and a test_dataloader')
    model = MODELS.build(config.model)
    if not hasattr(model, 'encode_video') or not hasattr(model, 'encoders'):
        raise ValueError(f'{args.config} must build a clusterplug.CenterCLIP, got {type(model).__name__}')
    _load_weights(args, model, args.checkpoint or config.get('load_from'))
    steps = [dict(step) for step in config.test_dataloader.dataset.pipeline]
    named = [(str(step['type']).rpartition('.')[2], step) for step in steps]
    settings = [step for name, step in named if name not in ('TokenizeCaptions', 'PackVideoText')]
    loading = [TRANSFORMS.build(step) for step in settings]
    words = [TRANSFORMS.build(step) for name, step in named if name == 'TokenizeCaptions']
    if not words:
        raise ValueError(f'{args.config} must have a step TokenizeCaptions in its test pipeline, to read sentences')

    def pipeline(results: dict) -> dict:
        for step in loading:
            results = step(results)
        return results

    return _Loaded(model.to(device).eval(), pipeline, words[0], [config.model.to_dict(), settings])


def _load_weights(args: argparse.Namespace, model, checkpoint: str | None) -> None:
    from clusterplug.checkpoints import checkpoint_fit, load_checkpoint_into
    from clusterplug.retrieval.search import untrained_parts

    if checkpoint:
        content = load_checkpoint_into(model, checkpoint)
        fit = checkpoint_fit(model, content.get('state_dict', content))
        lacking = f'{checkpoint} fills {fit.fitting} of {fit.total} parameters; missing: {", ".join(fit.missing[:5])}'
        random = [] if fit.share == 1 else [lacking]
    else:
        random = [f'weights of the {part} are random' for part in untrained_parts(model)]
    if random and not args.random_weights:
        raise ValueError(
            f'answers of an untrained model are random, and {"; ".join(random)}. Give --checkpoint, or a config whose '
            f'encoders are pretrained and whose head has no weights'
        )


def _device(name: str | None):
    import torch

    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device must be cpu or an accelerator of this machine, got {name}: {reason}') from error


def _index_path(args: argparse.Namespace) -> Path:
    videos = Path(os.path.abspath(args.videos))
    return args.index or videos.with_name(f'{videos.name}{".multi" if args.vectors == "multi" else ""}.index.pt')


def _make_index(args: argparse.Namespace, loaded: _Loaded):
    from clusterplug.retrieval.search import MultiVectorIndex, VideoIndex, build_index, load_or_set_aside, model_key

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    path = _index_path(args)
    with locked_file(path, say):
        previous = load_or_set_aside(path, say, MultiVectorIndex if args.vectors == 'multi' else VideoIndex)
        index = build_index(
            loaded.model, args.videos, loaded.pipeline, model_key(loaded.settings, model=loaded.model), previous,
            args.batch_size, lambda done, total: say(f'{done} of {total} videos'), path,
            args.vectors,
        )  # fmt: skip
    say(f'{path}: {index.describe()}')
    return index


def _index(args: argparse.Namespace) -> int:
    index = _make_index(args, _load(args))
    print(f'{_index_path(args)}: {len(index.ids)} videos')
    if index.unreadable:
        print(f'{len(index.unreadable)} could not be read:')
        print('\n'.join(f'  {video}: {why}' for video, why in sorted(index.unreadable.items())))
    return 0


def _query(args: argparse.Namespace) -> int:
    from clusterplug.retrieval.search import encode_sentences

    loaded = _load(args)
    features = encode_sentences(loaded.model, args.sentences, loaded.tokenize, args.vectors)
    index = _make_index(args, loaded)
    answers = []
    for sentence, feature in zip(args.sentences, features):
        hits = index.search(feature, args.top)
        answers.append(hits)
        print(sentence)
        for number, hit in enumerate(hits, 1):
            print(f'  {number}. {hit.video_id}  {hit.score:.4f}')
    if args.sheet:
        _draw_sheet(args, answers)
        print(args.sheet)
    return 0


def _draw_sheet(args: argparse.Namespace, answers: list) -> None:
    import numpy as np

    from clusterplug.datasets.video import UnreadableVideo, open_store
    from clusterplug.visualization import save_contact_sheet

    store, pictures = open_store(args.videos), {}
    for video_id in {hit.video_id for hits in answers for hit in hits}:
        try:
            video = store.open(video_id)
            pictures[video_id] = video.frames([video.length // 2])[0]
        except UnreadableVideo as error:
            print(f'warning: no picture of {video_id}: {error}', file=sys.stderr)
            pictures[video_id] = np.full((48, 64, 3), 128, np.uint8)
    rows = [[(hit.video_id, hit.score, pictures[hit.video_id]) for hit in hits] for hits in answers]
    save_contact_sheet(args.sheet, args.sentences, rows)


def _tokens(args: argparse.Namespace) -> int:
    import torch

    from clusterplug import patch
    from clusterplug.datasets.video import open_store
    from clusterplug.functional.tokens import segment_bounds
    from clusterplug.visualization import save_kept_tokens, save_segment_strip

    model, pipeline, _, _ = _load(args)
    item = pipeline(dict(store=open_store(args.videos), video_id=args.video, test_mode=True))
    mask = torch.as_tensor(item['frame_mask'])[None]
    inputs = dict(frames=[item['frames']], frame_mask=[mask[0]], tokens=[torch.zeros(1, 1, dtype=torch.int64)])
    batch = model.data_preprocessor(dict(inputs=inputs), False)['inputs']
    with torch.no_grad(), patch.frame_mask(model.encoders.clip, batch['frame_mask']) as session:
        model.encoders.encode_images(batch['frames'])
    if not session.results or session.results[0].places is None:
        raise ValueError('the config must cluster tokens (model.encoders.clustering) to draw the kept ones')
    places = session.results[0].places[0].cpu().numpy()
    frames = item['frames'].permute(0, 2, 3, 1).numpy()
    segments = segment_bounds(len(frames), len(places))
    side = session.layout.projection.weight.shape[-1]
    grid = (frames.shape[1] // side, frames.shape[2] // side)
    save_kept_tokens(args.out / f'{args.video}_tokens.png', frames, places, grid, segments, args.video)
    save_segment_strip(args.out / f'{args.video}_segments.png', frames, segments, mask[0].numpy())
    print(args.out / f'{args.video}_tokens.png')
    print(args.out / f'{args.video}_segments.png')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'search_videos'))
