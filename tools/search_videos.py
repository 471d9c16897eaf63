#!/usr/bin/env python
"""Find videos of a folder by a sentence.

    python tools/search_videos.py index FOLDER --config CONFIG --checkpoint CKPT
    python tools/search_videos.py query FOLDER --config CONFIG --checkpoint CKPT "a dog runs on grass" --sheet hits.png
    python tools/search_videos.py tokens FOLDER --config CONFIG --checkpoint CKPT VIDEO --out pictures

FOLDER may also be a zip or an LMDB. `index` encodes each video once and keeps the features beside the folder
(FOLDER.index.pt, or --index); `query` does so by itself when videos are new. `tokens` draws which tokens of a video the
model keeps, and its segments.
"""

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(arguments: list[str] | None = None) -> int:
    """Index, query or draw; returns the exit code."""
    args = _parse(arguments)
    try:
        return {'index': _index, 'query': _query, 'tokens': _tokens}[args.task](args)
    except (OSError, ValueError, ModuleNotFoundError, UnpicklingError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command starts again', file=sys.stderr)
        return 130


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest='task', required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('videos', type=Path, help='folder, zip or LMDB of videos')
    common.add_argument('--config', required=True, help='config of the model')
    common.add_argument('--checkpoint', help='trained weights; without, the encoders as the config loads them')
    common.add_argument('--index', type=Path, help='file with features (default: beside the videos)')
    common.add_argument('--device', default=None, help='cpu or cuda; by default cuda where there is one')
    common.add_argument('--batch-size', type=int, default=8, help='videos at once (default: %(default)s)')
    common.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='replace values')
    tasks.add_parser('index', parents=[common], help='encode the videos')
    query = tasks.add_parser('query', parents=[common], help='answer sentences')
    query.add_argument('sentences', nargs='+', help='what to look for; quote each sentence')
    query.add_argument('--top', type=int, default=5, help='answers (default: %(default)s)')
    query.add_argument('--sheet', type=Path, help='draw the answers into this PNG')
    tokens = tasks.add_parser('tokens', parents=[common], help='draw the kept tokens of a video')
    tokens.add_argument('video', help='id: the name of the file without its suffix')
    tokens.add_argument('--out', type=Path, default=Path('pictures'), help='folder (default: %(default)s)')
    return parser.parse_args(arguments)


def _model(args: argparse.Namespace):
    """The model on its device, the pipeline up to frames, the step that tokenizes, and the key of the features."""
    import torch

    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import load_config
    from clusterplug.registry import MODELS, TRANSFORMS
    from clusterplug.retrieval.search import model_key

    config = load_config(args.config, args.cfg_options)
    model = MODELS.build(config.model)
    if args.checkpoint:
        load_checkpoint_into(model, args.checkpoint)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    model = model.to(device).eval()
    steps = config.test_dataloader.dataset.pipeline
    loading = [TRANSFORMS.build(s) for s in steps if s.type.endswith(('LoadVideoFrames', 'ResizeAndCrop'))]
    tokenize = next(TRANSFORMS.build(step) for step in steps if step.type.endswith('TokenizeCaptions'))

    def pipeline(results: dict) -> dict:
        for step in loading:
            results = step(results)
        return results

    key = model_key([config.model.to_dict(), [dict(s) for s in steps][: len(loading)]], args.checkpoint)
    return model, pipeline, tokenize, key


def _index_path(args: argparse.Namespace) -> Path:
    return args.index or args.videos.with_name(f'{args.videos.name}.index.pt')


def _make_index(args: argparse.Namespace, model, pipeline, key: str):
    from clusterplug.retrieval.search import VideoIndex, build_index

    path = _index_path(args)
    previous = VideoIndex.load(path) if path.is_file() else None
    say = lambda done, total: print(f'{done} of {total} videos', file=sys.stderr, flush=True)  # noqa: E731
    index = build_index(model, args.videos, pipeline, key, previous, args.batch_size, say)
    index.save(path)
    return index


def _index(args: argparse.Namespace) -> int:
    model, pipeline, _, key = _model(args)
    index = _make_index(args, model, pipeline, key)
    print(f'{_index_path(args)}: {len(index.ids)} videos')
    if index.unreadable:
        print(f'{len(index.unreadable)} could not be read:')
        print('\n'.join(f'  {video}: {why}' for video, why in sorted(index.unreadable.items())))
    return 0


def _query(args: argparse.Namespace) -> int:
    from clusterplug.retrieval.search import encode_sentences

    model, pipeline, tokenize, key = _model(args)
    features = encode_sentences(model, args.sentences, tokenize)
    index = _make_index(args, model, pipeline, key)
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
    from clusterplug.datasets.video import open_store
    from clusterplug.visualization import save_contact_sheet

    store, pictures = open_store(args.videos), {}
    for hit in {hit for hits in answers for hit in hits}:
        video = store.open(hit.video_id)
        pictures[hit.video_id] = video.frames([video.length // 2])[0]
    rows = [[(hit.video_id, hit.score, pictures[hit.video_id]) for hit in hits] for hits in answers]
    save_contact_sheet(args.sheet, args.sentences, rows)


def _tokens(args: argparse.Namespace) -> int:
    import torch

    from clusterplug import patch
    from clusterplug.datasets.video import open_store
    from clusterplug.functional.segment_tokens import segment_bounds
    from clusterplug.visualization import save_kept_tokens, save_segment_strip

    model, pipeline, _, _ = _model(args)
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
    sys.exit(main())
