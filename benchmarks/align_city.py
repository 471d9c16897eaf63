# SPDX-License-Identifier: Apache-2.0
"""LiDAR city objects and sentences about them, aligned: classes and sub-types that no anchor shows, against chance.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/align_city.py data/lidar_city --encoder all-MiniLM-L6-v2 \\
        [--config CONFIG.py --checkpoint epoch_5.pth] [--page docs/benchmarks.md]

Encoders are frozen: plain numbers of the shape, and with --config the features of a segmentor. What is held out changes
with the seed. Galleries: tools/align_text.py.
"""

import argparse
import runpy
import warnings
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, publish

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[1] / 'tools/align_text.py'))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('city', help='folder of a LiDAR city')
    parser.add_argument('--encoder', required=True, help='folder of a sentence encoder of transformers')
    parser.add_argument('--config', help='config of a segmentor of mmdet3d (default: none)')
    parser.add_argument('--checkpoint', default='none', help='its weights (default: those at the start)')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--page', help='page whose part between the marks "align_city" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    from clusterplug.datasets.lidar_city import city_objects, shape_features

    objects = city_objects(options.city, min_points=50)
    y = TOOL['encode_sentences'](options.encoder, [each.caption for each in objects])
    features = {'shape': shape_features([each.points for each in objects])}
    if options.config:
        found = TOOL['segmentor_features'](options.config, options.checkpoint, Path(options.city), objects)
        features |= {'MinkUNet': found, 'shape and MinkUNet': np.concatenate([features['shape'], found], 1)}
    lines = [
        f'{len(objects)} objects, {options.seeds} draws of what is held out; cells: match / top 5.',
        '',
        '| features of points | held out | components | method | held out: found | chance | shown: found | chance |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, x in features.items():
        for hold_out in ('class', 'subtype'):
            table: dict = {}
            for seed in range(options.seeds):
                anchors, unseen, seen, _ = TOOL['split'](objects, 0.25, 500, seed, hold_out)
                queries = {'unseen': unseen, 'seen': seen}
                for row in TOOL['compare'](x, y, anchors, queries, 'auto', 1e-3, seed)[0]:
                    key = row['method'], 'all' if row['components'] == 'all' else 'auto'
                    numbers = [row[each] for each in ('match', 'top5', 'chance_match', 'chance_top5')]
                    table.setdefault(key, {}).setdefault(row['kinds'], []).append(numbers)
            for (method, components), kinds in table.items():
                cells = []
                for kind in ('unseen', 'seen'):
                    mean, spread = np.mean(kinds[kind], 0), np.std(kinds[kind], 0, ddof=1)
                    cells.append(f'{mean[0]:.3f} +- {spread[0]:.3f} / {mean[1]:.3f} +- {spread[1]:.3f} | '
                                 f'{mean[2]:.3f} / {mean[3]:.3f}')  # fmt: skip
                lines.append(f'| {name} | {hold_out} | {components} | {method} | {" | ".join(cells)} |')
    lines = ['', *(f'{line}<br>' for line in describe_machine(('transformers', 'mmdet3d'))), '', *lines, '']
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'align_city', lines)


if __name__ == '__main__':
    main()
