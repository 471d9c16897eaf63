# SPDX-License-Identifier: Apache-2.0
"""Partition trees against random draws: how much of a space is covered, and what it costs.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/synthesis.py --page docs/benchmarks.md    # coverage and speed
    ... --only model --model FOLDER --gguf-file FILE                                           # a local model

coverage: as many samples by a tree and drawn at random, from the same generator with the same bias. speed: routing,
growing, going on. model: a small language model that seldom follows its prompts (SmolLM2-135M-Instruct in the published
figures): retries end, answers are kept. Trainings: benchmarks/synthesis_training.py.
"""

import argparse
import tempfile
import time

import numpy as np
from _timing import describe_machine, publish

from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    ChatGenerator,
    LidarCityGenerator,
    PartitionTree,
    TransformersChat,
    coverage,
    mean_cosine,
)

# Shares of a normal year, in the order of SCENE_ATTRIBUTES; guesses, and the same for both sides.
YEAR = {
    'weather': [0.84, 0.12, 0.02, 0.02],
    'street': [0.5, 0.3, 0.2],
    'sensor_height': [0.1, 0.8, 0.1],
    'objects': [0.85, 0.1, 0.05],
    'traffic': [0.1, 0.3, 0.5, 0.1],
    'people': [0.1, 0.3, 0.5, 0.1],
    'parked': [0.1, 0.3, 0.4, 0.2],
    'greenery': [0.2, 0.3, 0.5],
    'beams': [0.8, 0.15, 0.05],
}


def markdown(lines):
    head, *rest = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return [head, '|' + '---|' * len(lines[0]), *rest]


def spread(values, digits=3):
    values = np.asarray(values, dtype=float)
    return f'{values.mean():.{digits}f} +- {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}'


def one_hot(samples, attributes):
    return np.array([[sample[name] == value for name, all_of in attributes.items() for value in all_of]
                     for sample in samples], dtype=float)  # fmt: skip


def covered(name, generator, depth, per_leaf, seeds):
    """Rows of the table for one space."""
    results = {'random': [], 'tree': []}
    names = list(generator.attributes)[:depth]
    divided = {each: generator.attributes[each] for each in names}
    for seed in range(seeds):
        tree = PartitionTree(depth, n_pivots=24, seed=seed).grow(generator)
        made = tree.generate(generator, per_leaf)
        calls = tree.cost.calls  # before samples are routed
        drawn = generator.draw(len(made.samples), np.random.default_rng(seed))
        for kind, samples, leaf in (
            ('random', drawn, tree.route(drawn).leaf),
            ('tree', made.samples, made.leaf),
        ):
            found = coverage(leaf, len(tree.leaves))
            cosine = mean_cosine(one_hot(samples, divided))
            results[kind].append([len(samples), found.covered, found.entropy, found.evenness, cosine, calls])
    rows = []
    for kind, values in results.items():
        values = np.array(values)
        rows.append((
            f'{name}, {kind}', f'{values[0, 0]:.0f}', spread(100 * values[:, 1], 1), spread(values[:, 2], 2),
            spread(values[:, 3]), spread(values[:, 4]), f'{values[:, 5].mean():.0f}' if kind == 'tree' else '-',
        ))  # fmt: skip
    return rows


def coverage_table(seeds):
    grid = {'color': list('abc'), 'shape': list('abc'), 'size': list('abc')}
    biased = AttributeGenerator(grid, {name: [0.965, 0.025, 0.01] for name in grid})
    lines = [('space, samples by', 'samples', 'leaves covered, %', 'entropy', 'evenness', 'mean cosine', 'calls')]
    lines += covered('3 x 3 x 3, one of 27 at 90 %', biased, 3, 10, seeds)
    lines += covered('LiDAR city, even shares', LidarCityGenerator(), 4, 1, seeds)
    lines += covered('LiDAR city, shares of a year', LidarCityGenerator(weights=YEAR), 4, 1, seeds)
    return [
        f'{seeds} seeds, mean and spread. Mean cosine is over the values of the criteria as one-hot vectors, lower is '
        'more diverse; calls count growing and filling, none was refused.',
        '',
        *markdown(lines),
    ]


def timed(function):
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def speed_table():
    generator = LidarCityGenerator()
    tree = PartitionTree(4, n_pivots=24)
    with tempfile.TemporaryDirectory() as folder:
        grow, _ = timed(lambda: tree.grow(generator, folder=folder))
        again, _ = timed(lambda: tree.grow(generator, folder=folder))
        calls = tree.cost.calls
    rows = generator.draw(100_000, np.random.default_rng(0))
    by_key, _ = timed(lambda: tree.route(rows))
    own, _ = timed(lambda: tree.route(rows, lambda sample, criterion, values: sample[criterion]))
    lines = [
        ('what', 'seconds'),
        (f'grow 108 leaves, {calls} calls, every answer in the journal', f'{grow:.2f}'),
        ('the same again: all answers from the journal', f'{again:.2f}'),
        ('route 100,000 rows through 4 levels, batches of the generator', f'{by_key:.2f}'),
        ('the same, a function called for each row and level', f'{own:.2f}'),
    ]
    return markdown(lines)


def model_table(folder, gguf_file):
    """Does a tree end with a real model that seldom follows its prompts?"""
    chat = TransformersChat.from_pretrained(folder, **({'gguf_file': gguf_file} if gguf_file else {}))
    generator = ChatGenerator('A sample is one short sentence about the weather.', chat, max_tokens=64)
    tree = PartitionTree(1, n_pivots=3, max_values=5, attempts=3, samples_per_call=3, infinite_path_samples=2)
    with tempfile.TemporaryDirectory() as work:
        tree.grow(generator, folder=work)
        made = tree.generate(generator, folder=work)
        calls = tree.cost.calls
        again = PartitionTree(1, n_pivots=3, max_values=5, attempts=3, samples_per_call=3, infinite_path_samples=2)
        again.grow(generator, folder=work)
        again.generate(generator, folder=work)
        repeated = again.cost.calls - calls
    lines = [
        ('what', 'found'),
        ('leaves, samples, samples that are missing',
         f'{len(tree.leaves)}, {len(made.samples)}, {sum(made.missing.values())}'),
        ('calls, of which refused', f'{calls}, {tree.cost.invalid}'),
        ('bound of the calls for growing', f'{tree.calls_per_node * sum(1 for _ in tree.root.walk())}'),
        ('reasons of refusals', '; '.join(sorted({each[:60] for each in tree.cost.reasons})) or '-'),
        ('further calls of a second run in the same folder', f'{repeated}'),
        ('tokens of the answers, seconds', f'{tree.cost.tokens[1]}, {tree.cost.seconds:.0f}'),
    ]  # fmt: skip
    return markdown(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('coverage', 'speed', 'model'), nargs='+', default=['coverage', 'speed'])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--model', help='of --only model: a folder of transformers')
    parser.add_argument('--gguf-file', help='of --only model: the file in that folder, if it is GGUF')
    parser.add_argument('--page', help='page whose parts between "synthesis" and "synthesis_model" are replaced')
    options = parser.parse_args()
    parts = {
        'coverage': lambda: coverage_table(options.seeds),
        'speed': speed_table,
        'model': lambda: model_table(options.model, options.gguf_file),
    }
    for mark, names in (('synthesis', ('coverage', 'speed')), ('synthesis_model', ('model',))):
        lines = [line for name in names if name in options.only for line in ('', *parts[name]())]
        if not lines:
            continue
        lines = [*describe_machine(('numpy', 'open3d')), *lines]
        print('\n'.join(lines))
        if options.page:
            publish(options.page, mark, ['', *lines, ''])


if __name__ == '__main__':
    main()
