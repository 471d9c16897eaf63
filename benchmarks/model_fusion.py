# SPDX-License-Identifier: Apache-2.0
"""Merging four fine-tuned digit classifiers: accuracy of every method over seeds, and the time of a merge.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/model_fusion.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/model_fusion.py --page docs/benchmarks.md

An MLP 64-256-256-64 on scikit-learn's digits with a fixed head a task: parity, at least five, remainder of three, the
digit. All start from two epochs on all tasks together. "oracle" trains the mask with labels, which shows that it can be
learned; "entropy" is the published objective, without labels.
"""

import argparse
import statistics

import torch
from _timing import Row, describe_machine, interleaved, one_thread_each, publish, table
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call

from clusterplug.fusion import AdaMerging, ConcreteMerging, TaskVector, task_arithmetic, ties_merging

TASKS = {
    'parity': (2, lambda y: y % 2),
    'five': (2, lambda y: (y >= 5).long()),
    'three': (3, lambda y: y % 3),
    'digit': (10, lambda y: y),
}


class Net(nn.Module):
    """A body that is merged, and a head that is not."""

    def __init__(self, body: nn.Module, head: nn.Module):
        super().__init__()
        self.body, self.head = body, head.requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))


def train(models, data, epochs, lr=1e-3, seed=0):
    """Train the common body of the models on their tasks in turn."""
    optimizer = torch.optim.Adam(models[0].body.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0][0]), generator=generator).split(32):
            loss = sum(nn.functional.cross_entropy(m(x[rows]), y[rows]) for m, (x, y) in zip(models, data, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def run(seed: int, steps: int) -> dict[str, float]:
    torch.manual_seed(seed)
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x))
    fit, held = order[:900], order[900:]
    body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    models = [Net(body, nn.Linear(64, size)) for size, _ in TASKS.values()]
    data = [(x[fit], target(y[fit])) for _, target in TASKS.values()]
    test = [(x[held], target(y[held])) for _, target in TASKS.values()]
    train(models, data, 2, seed=seed)
    base = {f'body.{name}': value.clone() for name, value in body.state_dict().items()}
    states = []
    for model, task in zip(models, data, strict=True):
        body.load_state_dict({name.removeprefix('body.'): value for name, value in base.items()})
        train([model], [task], 10, seed=seed)
        states.append({f'body.{name}': value.clone() for name, value in body.state_dict().items()})

    def accuracy(state):
        with torch.no_grad():
            hits = [
                (functional_call(m, each, (a,)).argmax(1) == b).float().mean()
                for m, each, (a, b) in zip(models, state if isinstance(state, list) else [state] * 4, test, strict=True)
            ]
        return float(torch.stack(hits).mean())

    vectors = [TaskVector(base, each) for each in states]
    found = {'start': accuracy(base), 'individual models': accuracy(states)}
    found['average'] = accuracy(task_arithmetic(base, vectors, 0.25))
    found['task arithmetic 0.3'] = accuracy(task_arithmetic(base, vectors, 0.3))
    found['TIES, sum, 0.5'] = accuracy(ties_merging(base, vectors, 0.5, reduction='sum'))
    found['TIES, mean, 1'] = accuracy(ties_merging(base, vectors))
    batches = [[(a[k : k + 64], b[k : k + 64]) for k in range(0, len(a) - 63, 64)] for a, b in test]
    labeled = [[(a[k : k + 64], b[k : k + 64]) for k in range(0, 896, 64)] for a, b in data]
    for name, merging, inputs, objective in (
        ('AdaMerging per layer, entropy', AdaMerging(base, vectors, level='layer'), batches, 'entropy'),
        ('Concrete TA, entropy', ConcreteMerging(base, vectors, seed=seed), batches, 'entropy'),
        ('Concrete TA, oracle', ConcreteMerging(base, vectors, seed=seed), labeled, 'cross_entropy'),
    ):
        more = {'meta_steps': steps} if isinstance(merging, ConcreteMerging) else {}
        merging.fit(models, inputs, steps=steps, lr=1e-2, objective=objective, check_every=25, **more)
        found[name] = accuracy(merging.merged_state())
    return found


def measure_step(repeats: int) -> list[Row]:
    """One masked merge of eight task vectors of 30 M parameters: a sum made once, against lists by name."""
    sizes = [(1000, 1000)] * 30
    base = {f'{k}': torch.randn(size) for k, size in enumerate(sizes)}
    vectors = [{name: torch.randn_like(value) for name, value in base.items()} for _ in range(8)]
    merging = ConcreteMerging(base, vectors).eval()
    masks = {name: mask.detach() for name, mask in merging.masks().items()}

    def lists():
        state = {name: value.clone() for name, value in base.items()}
        for vector in vectors:
            masked = {name: value * masks[name] / masks[name].mean() for name, value in vector.items()}
            for name, value in masked.items():
                state[name] = state[name] + 0.3 * value
        return state

    with torch.no_grad():
        for name, value in lists().items():
            torch.testing.assert_close(merging.merged()[name], value, rtol=1e-4, atol=1e-4)
        times = interleaved({'ours': merging.merged, 'lists': lists}, repeats)
    ours, theirs = (statistics.median(times[name]) for name in ('ours', 'lists'))
    return [Row('masked merge of 8 x 30 M', 'a list of vectors by name, as the authors', ours, theirs, 5)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=200, help='of every training')
    parser.add_argument('--page', help='page whose part between the marks "model_fusion" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(('scikit-learn',))
    with one_thread_each():
        timed = table(measure_step(3))
        results = [run(seed, options.steps) for seed in range(options.seeds)]
    lines = [f'| Digits, mean accuracy of four tasks, {options.seeds} seeds | Mean | Spread (sd) |', '|---|---|---|']
    for name in results[0]:
        values = [each[name] for each in results]
        lines.append(f'| {name} | {statistics.mean(values):.3f} | {statistics.stdev(values):.3f} |')
    print('\n'.join([*machine, *timed, '', *lines]))
    if options.page:
        publish(options.page, 'model_fusion', ['', *(f'{line}<br>' for line in machine), '', *timed, '', *lines, ''])


if __name__ == '__main__':
    main()
