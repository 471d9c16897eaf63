# SPDX-License-Identifier: Apache-2.0
"""Labels that are few, uneven or missing: solvers, episodes and novel classes on digits, Gaussians, tables, characters.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/few_labels.py
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/few_labels.py --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/few_labels.py --only optdigits speed --page docs/benchmarks.md

Everything is measured: mean and standard deviation over seeds, or mean and 95 % interval over episodes; process time.
Results on tables and characters are noted one by one in --ledger, which goes with the code; what is noted is not
measured again.
"""

import argparse
import os
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _few_shot_loop import official, processor_seconds, published
from _novel_tables import accuracy, real_table
from _omniglot import omniglot
from _seed_ledger import SeedLedger
from _timing import describe_machine, interleaved, one_thread_each, publish
from sklearn.datasets import load_digits

from clusterplug.estimators import (
    HiddenClassCV,
    KMeans,
    NovelClassKMeans,
    ProgressiveTransportClustering,
    ProjectionBasedNCD,
    TransductiveFewShot,
    estimate_n_clusters,
)
from clusterplug.evaluation.few_shot import FewShotEpisodes
from clusterplug.functional import align_by_transport, knn_graph, nearest_center, progressive_transport

LEDGER = Path(__file__).with_name('few_labels.json')


def spread(values) -> str:
    return f'{np.mean(values):.3f}' + (f' +- {np.std(values, ddof=1):.3f}' if len(values) > 1 else '')


def log_probabilities(n, k):
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=1)
    w = torch.nn.functional.normalize(torch.randn(k, 64, generator=generator), dim=1)
    return (10 * x @ w.T).log_softmax(1)


def plain_iterations(scores, mass, tol=1e-8, most=5000) -> int:
    """Iterations of the published scaling (virtual column scaled like the others, float64)."""
    n, k = scores.shape
    kernel = (torch.cat([scores.double(), torch.zeros(n, 1, dtype=torch.float64)], 1) / 0.1).exp()
    target = torch.tensor([mass / k] * k + [1 - mass], dtype=torch.float64)
    power = torch.tensor([1 / 1.1] * k + [1.0], dtype=torch.float64)
    b = torch.full((k + 1,), 1 / (k + 1), dtype=torch.float64)
    for number in range(most):  # noqa: B007
        before, b = b, (target / (kernel.T @ (1 / n / (kernel @ b)))) ** power
        if (b - before).norm() < tol:
            break
    return number + 1


def solver() -> list[str]:
    lines = ['| share of the mass (n 512, k 20) | iterations | of the published scaling (1e-8) |', '|---|---|---|']
    scores = log_probabilities(512, 20)
    for mass in (0.1, 0.5, 0.9):
        found = progressive_transport(scores, epsilon=0.1, mass=mass, penalty=1.0, full_output=True)
        lines.append(f'| {mass} | {int(found.num_iters)} | {plain_iterations(scores, mass)} |')
    scores = log_probabilities(100_000, 100)
    start = time.process_time()
    progressive_transport(scores, epsilon=0.1, mass=0.1, penalty=1.0)
    return [*lines, '', f'n 100,000, k 100, share 0.1: {time.process_time() - start:.1f} s of one core']


def gaussians(seeds) -> list[str]:
    found = {
        'k-means, one start': [],
        'ProgressiveTransportClustering, penalty 1': [],
        'ProgressiveTransportClustering, penalty 0.05': [],
    }
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        means, y = 1.5 * random.normal(size=(10, 16)), np.repeat(np.arange(10), np.geomspace(400, 20, 10).astype(int))
        x = means[y] + random.normal(size=(len(y), 16))
        models = (
            KMeans(10, random_state=seed),
            *(ProgressiveTransportClustering(10, penalty=p, random_state=seed) for p in (1.0, 0.05)),
        )
        for values, model in zip(found.values(), models, strict=True):
            values.append(accuracy(y, model.fit(x).labels_))
    lines = [f'| ten Gaussians, sizes 400 to 20 ({seeds} seeds) | accuracy |', '|---|---|']
    return [*lines, *(f'| {name} | {spread(values)} |' for name, values in found.items())]


def episodes(number) -> list[str]:
    x, y = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    x = x.float()
    mean, novel = x[y < 5].mean(0), y >= 5
    unit = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    def aligned(**options):
        def classify(support, labels, queries):
            member = torch.nn.functional.one_hot(labels).float()
            prototypes = member.mT @ support / member.sum(1).unsqueeze(-1)
            return nearest_center(queries, align_by_transport(prototypes, queries, **options))[0]

        return classify

    soft = {'num_passes': 1, 'epsilon': 0.02, 'penalty': 0.003}
    free = TransductiveFewShot(base_mean=mean, keep_labels=False)
    rows = [
        ('nearest prototype', aligned(num_passes=0), unit, y),
        ('OpTA, 1 pass', aligned(num_passes=1), unit, y), ('OpTA, 5 passes', aligned(num_passes=5), unit, y),
        ('OpTA, soft masses', aligned(**soft), unit, y),
        ('k-means (digits 5-9)', TransductiveFewShot(strength=0.0, base_mean=mean).classify, x[novel], y[novel]),
        ('Laplacian 0.7 (digits 5-9)', TransductiveFewShot(base_mean=mean).classify, x[novel], y[novel]),
        ('the same, keep_labels=False', free.classify, x[novel], y[novel]),
    ]  # fmt: skip
    lines = [
        f'| 5 ways of digits ({number} episodes) | 1 shot | 5 shots | 1 shot, queries 40 15 10 5 5 |',
        '|---|---|---|---|',
    ]
    for name, classify, features, labels in rows:
        cells = []
        for shots, queries in ((1, 15), (5, 15), (1, [40, 15, 10, 5, 5])):
            found = FewShotEpisodes(5, shots, queries, number, classifier=classify)(features, labels)
            cells.append(f'{found.mean:.3f} +- {found.interval:.3f}')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return lines


def speed(checkout: str | None, episodes=1024, alone=40) -> list[str]:
    """Episodes in batches against loops over episodes, in turn, so that all see the same machine; medians of 7."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(60)
    x = torch.randn(20, 64, generator=generator)[labels] + 2 * torch.randn(len(labels), 64, generator=generator)
    model = TransductiveFewShot(base_mean=torch.zeros(64))
    drawn = FewShotEpisodes(5, 5, 15, alone).draw(labels, alone)
    each_alone = [
        (x[rows].numpy(), ways.numpy(), x[others].numpy())
        for rows, ways, others in zip(drawn.support, drawn.support_labels, drawn.queries)
    ]
    rows = torch.cat([drawn.support, drawn.queries], 1)
    known = torch.cat([drawn.support_labels, torch.full_like(drawn.query_labels, -1)], 1)
    samples = torch.nn.functional.normalize(x[rows], dim=-1).repeat(5, 1, 1)
    free = TransductiveFewShot(base_mean=torch.zeros(64), keep_labels=False)
    batches, free_batches = (
        FewShotEpisodes(5, 5, 15, episodes, classifier=each.classify) for each in (model, free)
    )  # fmt: skip

    def loop():
        for each, y in zip(rows, known):
            model.fit(x[each], y)

    def one_by_one(solve):
        return [solve(*each, np.zeros(64, np.float32)) for each in each_alone]

    runs = {
        'batches': lambda: batches(x, labels), 'free': lambda: free_batches(x, labels), 'loop': loop,
        'published': lambda: one_by_one(published), 'neighbors': lambda: knn_graph(samples, 2),
        'product': lambda: samples @ samples.mT,
    }  # fmt: skip
    numbers = dict.fromkeys(runs, alone) | dict(
        batches=episodes, free=episodes, neighbors=len(samples), product=len(samples)
    )
    ms = {name: statistics.median(times) / numbers[name] for name, times in interleaved(runs).items()}

    def right(answers) -> str:
        return f'{np.mean(np.stack(answers) == drawn.query_labels.numpy()):.3f}'

    def in_batches(each) -> str:
        return right(each.classify(x[drawn.support], drawn.support_labels, x[drawn.queries]).numpy())

    lines = [
        ('batches of 256', ms['batches'], in_batches(model)),
        ('batches of 256, `keep_labels=False`', ms['free'], in_batches(free)),
        ('a loop of `fit`', ms['loop'], in_batches(model)),
        (
            'a loop of the published algorithm in NumPy, SciPy, scikit-learn', ms['published'],
            right(one_by_one(published)),
        ),
    ]  # fmt: skip
    if checkout:
        start = processor_seconds()
        answers = one_by_one(official(checkout))
        text = "a loop of the authors' code, which starts five processes in every round"
        lines.append((text, 1000 * (processor_seconds() - start) / alone, right(answers)))
    return [
        f'TransductiveFewShot, 5 ways, 5 shots, 15 queries, 64 dimensions; processor time of an episode, load of the '
        f'machine {os.getloadavg()[0]:.1f}; accuracy on {alone} episodes:',
        '',
        '| what | ms an episode | over batches | accuracy |',
        '|---|---|---|---|',
        *(f'| {name} | {cost:.3g} | {cost / ms["batches"]:,.0f} | {found} |' for name, cost, found in lines),
        f'| in batches, the two nearest neighbors of all samples | {ms["neighbors"]:.3f} | - | - |',
        f'| in batches, their matrix product alone | {ms["product"]:.3f} | - | - |',
        '',
        f'10,000 episodes: {10 * ms["batches"]:.1f} s of one core.',
    ]


def novel_classes(seeds) -> list[str]:
    x, y = load_digits(return_X_y=True)
    x, known = x[:, x.std(0) > 0], [2, 1, 9, 8, 7]
    tuned = {'lr': 8.756e-4, 'dropout': 0.086, 'latent_dim': 58}
    found = {
        'k-means': [], 'NovelClassKMeans, power 1': [], 'NovelClassKMeans, power 2': [],
        'ProjectionBasedNCD, weight 0.064': [], 'ProjectionBasedNCD, weight by HiddenClassCV': [],
    }  # fmt: skip
    numbers, weights = {'samples': [], 'projections': []}, []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[:1200], order[1200:]
        mean, scale = x[train].mean(0), x[train].std(0) + 1e-9
        a, b = (x[train] - mean) / scale, (x[test] - mean) / scale
        labels, novel = np.where(np.isin(y[train], known), y[train], -1), ~np.isin(y[test], known)
        search = HiddenClassCV(
            ProjectionBasedNCD(5, random_state=seed, **tuned), {'weight': [0.064, 0.5, 0.9]}, n_iter=None, n_folds=3,
            random_state=seed,
        )  # fmt: skip
        models = (
            KMeans(5, n_init=10, random_state=seed).fit(a[labels < 0]),
            *(NovelClassKMeans(5, power=power, random_state=seed).fit(a, labels) for power in (1, 2)),
            ProjectionBasedNCD(5, random_state=seed, weight=0.064, **tuned).fit(a, labels),
            search.fit(a, labels),
        )
        for values, model in zip(found.values(), models, strict=True):
            values.append(accuracy(y[test][novel], model.predict(b[novel])))
        weights.append(search.best_params_['weight'])
        for name, z in (('samples', a), ('projections', models[3].transform(a))):
            numbers[name].append(estimate_n_clusters(z[labels < 0], random_state=seed))
    lines = [f'| novel digits 3 6 0 5 4 ({seeds} splits) | accuracy |', '|---|---|']
    return [
        *lines,
        *(f'| {name} | {spread(values)} |' for name, values in found.items()),
        '',
        f'Weights that HiddenClassCV chose of 0.064, 0.5, 0.9, three folds of known digits: {listed(weights)}. Number '
        f'of novel digits by the silhouette: of samples {listed(numbers["samples"])}, of projections (weight 0.064) '
        f'{listed(numbers["projections"])}; the truth is 5.',
    ]


def listed(values) -> str:
    return ', '.join(str(value) for value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--episodes', type=int, default=300)
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of the results (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='of these parts, print what the ledger has')
    names = ('digits', 'optdigits', 'penbased', 'omniglot', 'speed')
    text = 'parts to run (default: all; optdigits, penbased and omniglot need CLUSTERPLUG_DATA)'
    parser.add_argument('--only', nargs='+', choices=names, default=names, help=text)
    text = "of speed: a checkout of imtiazziko/SLK-few-shot; the authors' code is timed as well"
    parser.add_argument('--official', metavar='FOLDER', help=text)
    parser.add_argument('--page', help='page whose part between the marks "few_labels" is replaced')
    options = parser.parse_args()
    warnings.simplefilter('ignore')  # of clusters that lost all samples
    torch.set_num_threads(1)
    packages = ('scikit-learn', 'numpy')
    machine, ledger = describe_machine(packages), SeedLedger(options.ledger, options.only_print, packages)
    parts = {
        'digits': lambda: [
            solver(),
            gaussians(options.seeds),
            episodes(options.episodes),
            novel_classes(options.seeds),
        ],
        'optdigits': lambda: [real_table('optdigits', options.seeds, ledger)],
        'penbased': lambda: [real_table('penbased', options.seeds, ledger)],
        'omniglot': lambda: [omniglot(options.seeds, options.episodes, ledger)],
        'speed': lambda: [speed(options.official)],
    }
    with one_thread_each():
        for name in options.only:
            lines = [line for part in parts[name]() for line in [*part, '']]
            print('\n'.join([*machine, '', *lines]), flush=True)
            if options.page:
                mark = 'few_labels' if name == 'digits' else f'few_labels_{name}'
                head = [f'{line}<br>' for line in machine] if name in ('digits', 'speed') else []
                publish(options.page, mark, ['', *head, '', *lines])


if __name__ == '__main__':
    main()
