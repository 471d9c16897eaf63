# SPDX-License-Identifier: Apache-2.0
"""Whether FEC learns: FEC-small against a ResNet and a ViT of its size, over seeds, in runs of a minute or two.

    python benchmarks/fec_training.py run --model fec-small --seed 0 [--steps 300] [--out work_dirs/fec_training]
    python benchmarks/fec_training.py all [--seeds 3]        # what is missing of it, one process a run
    python benchmarks/fec_training.py table

Data: the digits of scikit-learn (8 x 8, 1,797), one half for training, one for testing, enlarged to 32 x 32 pixels,
batches shifted at random by up to 4 pixels. AdamW, one cycle; the highest rate is that usual for the model.
LayerScale starts at 0.1 where a model has it: from 1e-5, hundreds of steps are too few. With a
rate of 1e-3 the ViT stays at chance.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from clusterplug.backbones import FEC
from clusterplug.core.files import whole_file

RATES = {'fec-small': 2e-3, 'fec-small-official': 2e-3, 'resnet': 2e-3, 'vit': 3e-4}


def build(name: str) -> torch.nn.Module:
    """A model of 5.4 M parameters for ten classes of 32 x 32 pixels (the ResNet: 4.9 M)."""
    if name.startswith('fec-small'):
        similarity = 'official' if name.endswith('official') else 'learned'
        return FEC(dict(type='small', layer_scale=0.1), num_classes=10, in_channels=1, pool_similarity=similarity)
    import timm

    if name == 'resnet':
        # of 32 pixels the usual first layers leave 8 x 8; the same for all three
        return timm.create_model('resnet10t', num_classes=10, in_chans=1)
    return timm.create_model('vit_tiny_patch16_224', num_classes=10, in_chans=1, img_size=32, patch_size=4)


def digits(seed: int) -> tuple[torch.Tensor, ...]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16 - 0.3
    images = F.interpolate(images, scale_factor=4, mode='bilinear')
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels, half = torch.tensor(bunch.target), len(images) // 2
    return images[order[:half]], labels[order[:half]], images[order[half:]], labels[order[half:]]


def shifted(images: torch.Tensor, most: int = 4) -> torch.Tensor:
    """Each batch moved by a few pixels, the border repeated."""
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    padded = F.pad(images, (most,) * 4, mode='replicate')
    return padded[..., down : down + images.shape[2], right : right + images.shape[3]]


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(100), labels.split(100)))
    return right / len(labels)


def run(name: str, seed: int, steps: int, batch: int, out: Path) -> dict:
    """Train once and write the result."""
    train_images, train_labels, images, labels = digits(seed)
    torch.manual_seed(seed)
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[name], total_steps=steps)
    start, losses = time.process_time(), []
    for _ in range(steps):
        model.train()
        chosen = torch.randint(len(train_images), (batch,))
        loss = F.cross_entropy(model(shifted(train_images[chosen])), train_labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    result = dict(
        model=name, seed=seed, steps=steps, batch=batch,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        accuracy=accuracy(model, images, labels), train_accuracy=accuracy(model, train_images, train_labels),
        first_loss=sum(losses[:10]) / 10, last_loss=sum(losses[-10:]) / 10, seconds=time.process_time() - start,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(file_of(out, name, seed)) as file:
        json.dump(result, file)
    print(f'{name} seed {seed}: test {result["accuracy"]:.3f}, loss {result["last_loss"]:.3f}', flush=True)
    return result


def file_of(out: Path, name: str, seed: int) -> Path:
    return out / f'{name}_seed{seed}.json'


def run_missing(seeds: int, steps: int, batch: int, out: Path) -> None:
    for seed in range(seeds):
        for name in RATES:
            if not file_of(out, name, seed).is_file():
                options = ['--model', name, '--seed', str(seed), '--steps', str(steps), '--batch-size', str(batch)]
                subprocess.run([sys.executable, __file__, 'run', *options, '--out', str(out)], check=True)


def table(out: Path) -> str:
    """Mean and standard deviation over seeds of what has been run."""
    from clusterplug.experiments.compare import compare

    lines = [
        '| model | parameters | seeds | steps | test accuracy | last loss | CPU s |',
        '|---|---|---|---|---|---|---|',
    ]
    for name in RATES:
        results = [json.loads(path.read_text()) for path in sorted(out.glob(f'{name}_seed*.json'))]
        if results:
            values = [100 * result['accuracy'] for result in results]
            mean, deviation = compare(values, values).baseline
            loss, seconds = (sum(r[key] for r in results) / len(results) for key in ('last_loss', 'seconds'))
            head = f'| {name} | {results[0]["parameters"] / 1e6:.2f} M | {len(results)} | {results[0]["steps"]} '
            spread = f' ± {deviation:.1f}' if len(values) > 1 else ''
            lines.append(head + f'| {mean:.1f}{spread} % | {loss:.3f} | {seconds:.0f} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['run', 'all', 'table'])
    parser.add_argument('--model', choices=list(RATES), default='fec-small')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--batch-size', dest='batch', type=int, default=32)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/fec_training'))
    args = parser.parse_args()
    if args.what == 'run':
        run(args.model, args.seed, args.steps, args.batch, args.out)
    elif args.what == 'all':
        run_missing(args.seeds, args.steps, args.batch, args.out)
    print(table(args.out))


if __name__ == '__main__':
    main()
