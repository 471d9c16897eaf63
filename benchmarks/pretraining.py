# SPDX-License-Identifier: Apache-2.0
"""What pre-training without labels brings: images against pixels and a random network, scans against from scratch.

    CLUSTERPLUG_DATA=/path/to/data OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/pretraining.py
    ... python benchmarks/pretraining.py --parts scans --city 2 --labeled 5 --seeds 0
    ... python benchmarks/pretraining.py --only-print --page docs/benchmarks.md

images: 5,000 images of CIFAR-10, balanced or 1,242 of them with a long tail; the small configs of each method as they
are, shortened to a minute or two of one core, and balanced once more to five minutes of two. Frozen features of the
backbone are judged on 2,000 other images.
scans: SwAV on the 140 scans for training of a LiDAR city without their labels, then MinkUNet on a few labeled ones of
them, drawn by the seed, from that backbone and from scratch: same scans, same number of steps, same seed. frozen: what
probes tell of points from that backbone, without another training.

Every finished training is kept under --out, every finished figure in --ledger, which goes with the code; what is there
is not measured again, and a run that was stopped goes on.
"""

import argparse
import warnings
from pathlib import Path

import torch
from _gain_ledger import Ledger, content_key_of
from _pretraining_images import SETS
from _timing import describe_machine, one_thread_each, publish

LEDGER = Path(__file__).with_name('pretraining.json')


def images(args, ledger: Ledger) -> list[str]:
    from _pretraining_images import METHODS, configured, image_lines, measured, wanted

    cells = {}
    for seed in args.seeds:
        for part in args.sets:
            for name in args.methods or METHODS:
                if (part, name) not in wanted() or (name == 'pixels' and seed):
                    continue  # nothing of pixels is drawn
                folder = args.out / 'images' / f'{name.split()[0]}-{part.replace(", ", "-")}-{seed}'
                key = dict(part='images', set=part, method=name, seed=seed)
                key['content'] = content_key_of(configured(name, part, seed, folder))
                noted = ledger.find(key)
                if noted is None and not args.only_print:
                    noted = note(ledger, key, measured(name, part, seed, folder))
                if noted is not None:
                    cells.setdefault((part, name), []).append(noted)
    return image_lines({where: [each['found'] for each in noted] for where, noted in cells.items()}) + sources(cells)


def scans(args, ledger: Ledger) -> list[str]:
    from _pretraining_scans import few_labels, pair, pretrained, scan_lines

    found = {(city, labeled): [] for city in args.city for labeled in args.labeled}
    for seed in args.seeds:
        for city, labeled in found:
            data, folder = args.cities / f'city{city}', args.out / 'scans' / f'city{city}-seed{seed}'
            if not args.only_print:
                generated(data, city)
            configs = {'pretraining': pretrained(data, folder / 'pretraining', args.pre_steps, seed)}
            for name in ('scratch', 'pretrained'):
                options = (args.steps, seed, labeled, args.test_scans)
                configs[name] = few_labels(data, folder / f'{name}-{labeled}', *options)
            key = dict(part='scans', city=city, labeled=labeled, seed=seed, content=content_key_of(*configs.values()))
            noted = ledger.find(key)
            if noted is None and not args.only_print:
                noted = note(ledger, key, pair(configs, args.steps, args.pre_steps))
            if noted is not None:
                found[city, labeled].append(noted)
    return scan_lines(found) + sources(found)


def frozen(args, ledger: Ledger) -> list[str]:
    from _pretraining_scans import frozen as measured, frozen_lines, probed

    found = {city: [] for city in args.city}
    for seed in args.seeds:
        for city in found:
            data, folder = args.cities / f'city{city}', args.out / 'scans' / f'city{city}-seed{seed}'
            if not args.only_print:
                generated(data, city)
            config = probed(data, folder / 'pretraining', args.pre_steps, seed)
            key = dict(part='frozen', city=city, seed=seed, content=content_key_of(config))
            noted = ledger.find(key)
            if noted is None and not args.only_print:
                noted = note(ledger, key, measured(config, args.pre_steps))
            if noted is not None:
                found[city].append(noted)
    return frozen_lines(found) + sources(found)


def sources(cells: dict) -> list[str]:
    """Where the figures come from, one line a machine and version of the code."""
    noted = {f'- {each["machine"]}; clusterplug {each["code"]}' for found in cells.values() for each in found}
    return ['', *sorted(noted)]


def generated(data: Path, city: int) -> None:
    from clusterplug.datasets.lidar_city import generate_lidar_city

    generate_lidar_city(data, seed=city - 1, num_train=140, num_val=150)


def note(ledger: Ledger, key: dict, found: dict) -> dict:
    from clusterplug.experiments.identity import versions

    machine = '; '.join(describe_machine(('mmdet3d', 'spconv')))
    noted = ledger.note(key, found=found, machine=machine, code=versions()['clusterplug'])
    print({name: key[name] for name in key if name != 'content'}, found, flush=True)
    return noted


PARTS = {'images': images, 'scans': scans, 'frozen': frozen}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument('--methods', nargs='+', help='methods of the images (default: all)')
    parser.add_argument('--city', type=int, nargs='+', choices=(1, 2), default=[1, 2])
    parser.add_argument('--labeled', type=int, nargs='+', default=[5, 20], help='labeled scans (default: 5 20)')
    parser.add_argument('--pre-steps', type=int, default=400, help='steps of pre-training, of two scans')
    parser.add_argument('--steps', type=int, default=400, help='steps with labels, of one scan')
    parser.add_argument('--test-scans', type=int, default=50, help='scans of other streets that are tested')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/pretraining'), help='where trainings are kept')
    parser.add_argument('--cities', type=Path, help='folder of city1 and city2 (default: in --out)')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of the finished figures')
    parser.add_argument('--only-print', action='store_true', help='train nothing; the tables of what is in the ledger')
    parser.add_argument('--page', help='page whose parts "pretraining_PART" are replaced')
    args = parser.parse_args()
    args.cities = args.cities or args.out
    from clusterplug import compat

    compat.apply_all()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    ledger = Ledger(args.ledger)
    with one_thread_each():
        for part in args.parts:
            lines = PARTS[part](args, ledger)
            lines = ['', *lines, '']
            print('\n'.join(lines))
            if args.page:
                publish(args.page, f'pretraining_{part}', lines)


if __name__ == '__main__':
    main()
