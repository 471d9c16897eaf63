# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP trained from nothing on generated videos, against the unclustered model and sparse sampling, over seeds.

    python benchmarks/centerclip_training.py data/moving_sprites work_dirs/centerclip_training

Trains each config with tools/train.py (runs that are finished are left alone), then tests every last checkpoint on the
test set and on three more of other seeds, 576 videos in all, and prints the table.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NAMES = ('clip4clip-meanp', 'centerclip-b1-2x6', 'sparse-b1-2x6')
CONFIG = '{}_vit-tiny_1xb64-40e_moving-sprites'
METRICS = ('t2v/R1', 't2v/R5', 'v2t/R1', 'v2t/R5')


def write_videos(folder: Path, test_seeds: int) -> list[Path]:
    """Generate what is missing; return the folders with a test set."""
    from clusterplug.datasets.moving_sprites import generate_moving_sprites

    folders = [folder, *(folder.with_name(f'{folder.name}_{seed}') for seed in range(1, test_seeds))]
    for seed, each in enumerate(folders):
        counts = {'train': 6 if seed == 0 else 0, 'test': 1}
        for _ in generate_moving_sprites(each, counts, seed=seed):
            pass
    return folders


def train(name: str, seed: int, data: Path, work_dir: Path) -> Path:
    """Train one run unless its last checkpoint is there; return the checkpoint."""
    checkpoint = work_dir / 'epoch_40.pth'
    if not checkpoint.is_file():
        config = ROOT / 'configs' / 'centerclip' / f'{CONFIG.format(name)}.py'
        command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', work_dir, '--cfg-options',
                   f'randomness.seed={seed}', *data_options(data)]  # fmt: skip
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return checkpoint


def data_options(data: Path) -> list[str]:
    """Options that point a config of the sprites to another folder."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    roots = [f'{loader}.dataset.data_root={data}' for loader in loaders]
    words = [f'{loader}.dataset.pipeline.2.tokenizer.vocabulary={data}/vocabulary.txt' for loader in loaders]
    return [*roots, *words]


def test(name: str, checkpoint: Path, datasets: list) -> dict[str, float]:
    """Metrics of a checkpoint, averaged over the test sets."""
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import load_checkpoint

    from clusterplug.cli import load_config
    from clusterplug.evaluation import RetrievalMetric
    from clusterplug.registry import MODELS

    config = load_config(str(ROOT / 'configs' / 'centerclip' / f'{CONFIG.format(name)}.py'), work_dir='x')
    model = MODELS.build(config.model).eval()
    load_checkpoint(model, str(checkpoint), map_location='cpu')
    found = []
    for dataset in datasets:
        metric = RetrievalMetric()
        for first in range(0, len(dataset), 48):
            batch = pseudo_collate([dataset[i] for i in range(first, min(first + 48, len(dataset)))])
            with torch.no_grad():
                samples = model.test_step(batch)
            metric.process(batch, [sample.to_dict() for sample in samples])
        found.append(metric.evaluate(len(dataset)))
    return {key: statistics.mean(each[f'retrieval/{key}'] for each in found) for key in METRICS}


def test_sets(folders: list[Path], words: Path) -> list:
    """The test set of each folder, with the words of the training captions."""
    from clusterplug.cli import load_config
    from clusterplug.registry import DATASETS

    config = load_config(str(ROOT / 'configs' / 'centerclip' / f'{CONFIG.format(NAMES[0])}.py'), work_dir='x')
    sets = []
    for folder in folders:
        settings = config.test_dataloader.dataset.to_dict()
        settings['data_root'] = str(folder)
        settings['pipeline'][2]['tokenizer']['vocabulary'] = str(words)
        sets.append(DATASETS.build(settings))
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder of the generated videos')
    parser.add_argument('work_dir', type=Path, help='folder of the runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--test-sets', type=int, default=4)
    args = parser.parse_args()
    from clusterplug.experiments.compare import comparison_table

    folders = write_videos(args.data, args.test_sets)
    runs = {
        name: [train(name, seed, args.data, args.work_dir / f'{name}_{seed}') for seed in args.seeds] for name in NAMES
    }
    sets = test_sets(folders, args.data / 'vocabulary.txt')
    metrics = {name: [test(name, checkpoint, sets) for checkpoint in found] for name, found in runs.items()}
    for name, found in metrics.items():
        print(name, [[round(each[key], 1) for key in METRICS] for each in found])
    baseline = metrics.pop(NAMES[0])
    print(comparison_table(baseline, metrics, METRICS, factor=1.0))


if __name__ == '__main__':
    main()
