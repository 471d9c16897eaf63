# SPDX-License-Identifier: Apache-2.0
"""Units of two networks, and two spaces aligned: digits, planted subspaces, time.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/compare_and_align.py
    ... python benchmarks/compare_and_align.py --page docs/benchmarks.md    # between the marks "compare-and-align"

About 2 CPU-minutes.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from _timing import describe_machine, publish
from sklearn.datasets import load_digits

from clusterplug.analysis import UnitMatching, UnitMoments
from clusterplug.estimators import SubspaceAligner
from clusterplug.functional import local_cka_scores, match_units


def net_of(x, y, seed):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(),
                              torch.nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(30):
        for rows in torch.randperm(1200, generator=g).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net


def planted(seed):
    g = np.random.default_rng(seed)
    common, sides = g.standard_normal((3200, 10)), []
    for width in (128, 96):
        mix = g.standard_normal((70, width))
        sides.append(np.concatenate([common, g.standard_normal((3200, 60))], 1) @ mix)
    return [(side[:3000], side[3000:]) for side in sides]


def halves(seed):
    images = load_digits().images
    images = images[np.random.default_rng(seed).permutation(len(images))]
    return [(rows[:1500], rows[1500:1700]) for rows in (images[:, :4].reshape(-1, 32), images[:, 4:].reshape(-1, 32))]


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def spread(values):
    return f'{np.mean(values):.3f} ± {np.std(values):.3f}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--page', help='page whose part between the marks "compare-and-align" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    lines = ['', *(f'{line}<br>' for line in describe_machine(('scikit-learn', 'scipy'))), '']
    a, b = torch.randn(10000, 1024).relu(), torch.randn(10000, 1024).relu()
    moments = UnitMoments()
    collected = seconds(lambda: [moments.add(a, b) for _ in range(10)])
    matched = seconds(lambda: match_units(moments.correlation()))
    anchors, queries = torch.randn(30000, 50), torch.randn(500, 50)
    scored = seconds(lambda: local_cka_scores(anchors, anchors, queries, queries))
    lines += ['| One thread | CPU time |', '|---|---|',
              f'| moments of 1,024 + 1,024 units, 100,000 positions | {collected:.1f} s |',
              f'| their correlation and bipartite matching | {matched:.2f} s |',
              f'| local CKA, 500 x 500 pairs over 30,000 anchors of 50 dimensions | {scored:.2f} s |', '']  # fmt: skip
    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    found = {'1': [], '3': []}
    for seed in range(options.seeds):
        matching = UnitMatching(net_of(x, y, 2 * seed), net_of(x, y, 2 * seed + 1), ['1', '3']).fit([x])
        for row in matching.summary(50):
            found[row.layer].append((row.semi, row.bipartite, row.same_choice, row.identity, row.cka, row.null))
    lines += [f'| Two digits nets 64-64-64-10, {options.seeds} pairs | semi | bipartite | same choice | identity | '
              'CKA | null 95 % |', '|---|---|---|---|---|---|---|']  # fmt: skip
    for number, rows in enumerate(found.values(), 1):
        lines.append(f'| layer {number} | ' + ' | '.join(spread(column) for column in zip(*rows, strict=True)) + ' |')
    lines += ['', f'| Match / top 5, 200 queries, {options.seeds} seeds | components | affine | local CKA |',
              '|---|---|---|---|']  # fmt: skip
    for name, data, numbers in (('planted, 10 of 70 shared', planted, ('full', 'auto', 20, 50)),
                                ('digits, upper and lower halves', halves, ('full', 'auto', 12, 24))):  # fmt: skip
        for number in numbers:
            cells, kept = [], []
            for method in ('affine', 'local_cka'):
                rows = []
                for seed in range(options.seeds):
                    (fit_x, query_x), (fit_y, query_y) = data(seed)
                    aligner = SubspaceAligner(number, method, cv=5 if number == 'auto' else 0).fit(fit_x, fit_y)
                    numbers_of = aligner.evaluate(query_x, query_y)
                    rows.append((numbers_of['match'], numbers_of['top5']))
                    kept.append(aligner.n_components_)
                cells.append(' / '.join(spread(column) for column in zip(*rows, strict=True)))
            label = f'auto: {", ".join(map(str, sorted(set(kept))))}' if number == 'auto' else number
            lines.append(f'| {name} | {label} | {" | ".join(cells)} |')
    lines += ['', 'Chance is 0.005 / 0.025.', '']
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'compare-and-align', lines)


if __name__ == '__main__':
    main()
