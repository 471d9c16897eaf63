# SPDX-License-Identifier: Apache-2.0
"""Units that two trainings share: the demo's MinkUNet with and without the clustering loss, and two small ViTs.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/compare_networks.py --minutes 11    # as often as needed
    ... --page docs/benchmarks.md                                                        # the tables

MinkUNets: two seeds with and two without the loss, on the same scans of a LiDAR city, compared on other streets. ViTs:
two seeds on CIFAR-10 pictures of CLUSTERPLUG_DATA, compared on its test pictures. What is done is kept under --out.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, publish

from clusterplug.analysis import UnitMatching

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {'plain': 'minkunet18_w8_spconv_1xb1-5e_lidar-city.py',
           'clustering': 'point-cluster_minkunet18_w8_spconv_1xb1-5e_lidar-city.py'}  # fmt: skip
SCAN_LAYERS = ['backbone.conv_input', 'backbone.encoder.1', 'backbone.encoder.3', 'backbone.decoder.1.1',
               'backbone.decoder.3.1']  # fmt: skip
VIT_LAYERS = ['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'norm']
SCANS, EPOCHS = 24, 5


def minkunet_run(kind: str, seed: int, out: Path):
    from clusterplug.experiments import Run

    settings = {f'{split}_dataloader.dataset.data_root': str(out / 'city') for split in ('train', 'val', 'test')}
    settings |= {'randomness.seed': seed, 'train_cfg': dict(max_epochs=EPOCHS, val_interval=EPOCHS + 1)}
    settings |= {f'param_scheduler.1.{name}': EPOCHS for name in ('T_max', 'end')}
    return Run(str(ROOT / 'configs/point_cluster' / CONFIGS[kind]), settings, out / f'{kind}{seed}')


def train_minkunet(kind: str, seed: int, out: Path) -> None:
    from clusterplug.datasets.lidar_city import generate_lidar_city
    from clusterplug.experiments.run import result_of, train_and_test

    generate_lidar_city(out / 'city', num_train=SCANS, num_val=8, scans_per_street=4, columns=512, progress=False)
    run = minkunet_run(kind, seed, out)
    if result_of(run) is None:
        train_and_test(run)


def read_minkunet(kind: str, seed: int, out: Path):
    """Return the trained model, the loader of the validation scans, and its mean IoU."""
    from mmengine.runner.checkpoint import load_checkpoint

    from clusterplug.cli import build_runner, load_config
    from clusterplug.experiments.run import result_of

    run = minkunet_run(kind, seed, out)
    config = load_config(run.config, dict(run.options), str(Path(run.work_dir) / 'reading'))
    config.visualizer.name, config.log_level = f'reading {run.work_dir}', 'WARNING'
    runner = build_runner(config)
    last = Path((Path(run.work_dir) / 'last_checkpoint').read_text().strip()).name
    load_checkpoint(runner.model, str(Path(run.work_dir) / last), map_location='cpu', logger='silent')
    loader = runner.build_dataloader(config.val_dataloader)
    metrics = result_of(run)['metrics']
    return runner.model.eval(), loader, metrics.get('miou', metrics.get('mIoU', float('nan')))


def vit():
    import timm

    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=10, global_pool='avg'
    )


def cifar():
    content = np.load(Path(os.environ['CLUSTERPLUG_DATA']) / 'images/cifar10_small.npz')
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)))
    found = []
    for split in ('train', 'test'):
        x = torch.from_numpy(content[f'X_{split}']).permute(0, 3, 1, 2).float() / 255
        found.append(((x - mean) / deviation, torch.from_numpy(content[f'y_{split}']).long()))
    return found


def train_vit(seed: int, out: Path, epochs: int = 6) -> None:
    file = out / f'vit{seed}.pth'
    if file.is_file():
        return
    torch.manual_seed(seed)
    model, g = vit(), torch.Generator().manual_seed(seed)
    (x, y), _ = cifar()
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(100):
            picture = x[rows].flip(-1) if torch.rand((), generator=g) < 0.5 else x[rows]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(picture), y[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), file)


def rows_of(name: str, matching: UnitMatching) -> list[str]:
    lines = []
    for row in matching.summary(50):
        lines.append(f'| {name} | {row.layer} | {row.units_a} | {row.dead_a} / {row.dead_b} | {row.positions} | '
                     f'{row.semi:.3f} | {row.bipartite:.3f} | {row.same_choice:.2f} | {row.identity:.3f} | '
                     f'{row.cka:.3f} | {row.null:.3f} |')  # fmt: skip
    return lines


HEAD = ['| networks | layer | units | dead | positions | semi | bipartite | same choice | identity | CKA | null 95 % |',
        '|---|---|---|---|---|---|---|---|---|---|---|']  # fmt: skip


def minkunets(out: Path) -> list[str]:
    found = {(kind, seed): read_minkunet(kind, seed, out) for kind in CONFIGS for seed in (0, 1)}
    pairs = {
        'two seeds, without the loss': (('plain', 0), ('plain', 1)),
        'two seeds, with the loss': (('clustering', 0), ('clustering', 1)),
        'seed 0, without and with': (('plain', 0), ('clustering', 0)),
        'seed 1, without and with': (('plain', 1), ('clustering', 1)),
    }
    lines = list(HEAD)
    for name, (a, b) in pairs.items():
        lines += rows_of(name, UnitMatching(found[a][0], found[b][0], SCAN_LAYERS).fit(found[a][1]))
    accuracy = ', '.join(f'{kind} {seed}: {100 * each[2]:.1f}' for (kind, seed), each in found.items())
    return [f'MinkUNet18-W8, {SCANS} scans, {EPOCHS} epochs; mIoU of the four: {accuracy}.', '', *lines]


def vits(out: Path) -> list[str]:
    (_, (x, y)), models, accuracy = cifar(), [], []
    for seed in (0, 1):
        model = vit()
        model.load_state_dict(torch.load(out / f'vit{seed}.pth'))
        with torch.inference_mode():
            accuracy.append(float((model.eval()(x).argmax(1) == y).float().mean()))
        models.append(model)
    matching = UnitMatching(*models, VIT_LAYERS).fit(x.split(500))
    shown = ' and '.join(f'{each:.3f}' for each in accuracy)
    return [f'Two ViTs (4 blocks of 96 units), CIFAR-10 test pictures; accuracy {shown}.', '',
            *HEAD, *rows_of('two ViTs', matching)]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no training that would end later')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare_networks'), help='where all is kept')
    parser.add_argument('--page', help='page whose part between the marks "compare_networks" is replaced')
    options = parser.parse_args()
    from clusterplug import compat

    compat.apply_all()
    torch.set_num_threads(1)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin, longest = time.time(), 0.0
    jobs = [lambda seed=seed: train_vit(seed, out) for seed in (0, 1)]
    jobs += [lambda kind=kind, seed=seed: train_minkunet(kind, seed, out) for seed in (0, 1) for kind in CONFIGS]
    for number, job in enumerate(jobs):
        started = time.time()
        if started - begin + longest > options.minutes * 60:
            print(f'{number} of {len(jobs)} trainings are there; call again for the others')
            return
        job()
        longest = max(longest, time.time() - started)
        print(f'training {number + 1} of {len(jobs)}: {time.time() - started:.0f} s', flush=True)
    lines = [*(f'{line}<br>' for line in describe_machine(('numpy', 'timm', 'mmdet3d'))), '', *minkunets(out), '']
    lines += vits(out)
    print('\n'.join(lines))
    if options.page:
        publish(options.page, 'compare_networks', ['', *lines, ''])


if __name__ == '__main__':
    main()
