# SPDX-License-Identifier: Apache-2.0
"""Every estimator of deep clustering on real data, next to k-means, spectral and agglomerative: one table.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --data FOLDER --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --only digits --seeds 1
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/deep_clustering.py --data FOLDER --minutes 10     # and again

FOLDER holds features/ and images/ (without it: the sets that need no file). Every fit runs in a process of its own and
is written to --store, so a run that was stopped, or ended after --minutes, goes on where it was; `--minutes 0 --page`
writes the page from what is there. Labels of the data give K and the scores alone: no epoch and no setting is chosen
by them. Seconds are process time of one thread; MB is the growth of the peak of the process over that of the data.
"""

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _deep_data import SETS
from _deep_methods import methods_of
from _timing import describe_machine, one_thread_each, publish

from clusterplug.core.files import write_json
from clusterplug.functional import adjusted_rand_index, clustering_accuracy, normalized_mutual_info
from clusterplug.testing import peak_of_process

NEEDS_NO_FILE = ('digits', 'complementary', 'noisy_views')
SCORES = ('ACC', 'NMI', 'ARI')


def scores(labels, truth):
    labels, truth = torch.as_tensor(np.asarray(labels)), torch.as_tensor(truth)
    kinds = (clustering_accuracy, normalized_mutual_info, adjusted_rand_index)
    return [float(kind(labels, truth)) for kind in kinds]


def fit(data, method, seed, connection):
    """Send scores, seconds and megabytes of one fit; the process ends afterwards."""
    before, begin = peak_of_process(), time.process_time()
    labels = method.label(data, seed)
    seconds, peak = time.process_time() - begin, peak_of_process()
    connection.send([*scores(labels, data.truth), seconds, (peak - before) / 1e6])


def measure(data, method, seed):
    """Return what :func:`fit` sends, or None where it failed."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=fit, args=(data, method, seed, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def run(names, folder, seeds, store, minutes):
    """Fill the store until all is there or the time is over; return whether all is."""
    found = json.loads(store.read_text()) if store.is_file() else {}
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    data = {name: SETS[name](folder) for name in names}
    for seed in range(seeds):  # so that every method has a figure before one has several
        for each in data.values():
            for method in methods_of(each):
                key = f'{each.name} | {method.name} | {seed}'
                if key in found or seed >= (method.seeds or seeds):
                    continue
                if ends is not None and time.monotonic() > ends:
                    return found, False
                found[key] = measure(each, method, seed)
                print(key, found[key] and [round(value, 3) for value in found[key]], flush=True)
                write_json(store, found)
    return found, True


def table(found):
    """Lines of the table: mean and spread over the seeds."""
    lines = ['| Data | Method | ' + ' | '.join(SCORES) + ' | Seconds | MB | Seeds |', '|---' * 8 + '|']
    groups = {}
    for key, values in found.items():
        data, method, _ = key.split(' | ')
        groups.setdefault((data, method), []).append(values)
    for (data, method), rows in groups.items():
        good = [row for row in rows if row is not None]
        if not good:
            lines.append(f'| {data} | {method} | failed | | | | | {len(rows)} |')
            continue
        columns = []
        for values in list(zip(*good, strict=True))[:3]:
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            columns.append(f'{statistics.mean(values):.3f}{spread}')
        seconds, memory = (statistics.mean(row[number] for row in good) for number in (3, 4))
        lines.append(f'| {data} | {method} | {" | ".join(columns)} | {seconds:.1f} | {memory:.0f} | {len(good)} |')
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the real data (default: the sets that need no file)')
    parser.add_argument('--only', choices=SETS, nargs='+', help='data sets (default: all that have data)')
    parser.add_argument('--seeds', type=int, default=5, help='of each method that draws (default: 5)')
    parser.add_argument('--store', type=Path, default=Path('work_dirs/deep_clustering.json'), help='file of the fits')
    parser.add_argument('--minutes', type=float, help='begin no fit after so many minutes (default: no limit)')
    parser.add_argument('--page', help='page whose part between the marks "deep clustering" is replaced')
    options = parser.parse_args()
    names = options.only or (list(SETS) if options.data else NEEDS_NO_FILE)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    options.store.parent.mkdir(parents=True, exist_ok=True)
    with one_thread_each():
        found, complete = run(names, options.data, options.seeds, options.store, options.minutes)
    lines = table(found)
    print('\n'.join(lines))
    if options.page:
        machine = describe_machine(('scikit-learn', 'scipy', 'numpy'))
        publish(options.page, 'deep clustering', ['', *(f'{line}<br>' for line in machine), '', *lines, ''])
    elif not complete:
        print('not complete: run it again')


if __name__ == '__main__':
    main()
