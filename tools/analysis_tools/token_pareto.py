#!/usr/bin/env python
"""What token reduction buys and costs on one model: a table, a picture, and a setting for a wished speed-up.

    python tools/analysis_tools/token_pareto.py vit_small_patch14_dinov2 --size 518 --images pictures/ --speedup 1.4
    python tools/analysis_tools/token_pareto.py transformers/Dinov2Model --size 224
    python tools/analysis_tools/token_pareto.py my_package.models:build_segmenter --size 640 --labels labels/

MODEL is a name of timm, ``transformers/<class>`` (random weights of its default config; ``--pretrained NAME`` for
trained ones), or ``module:function`` that returns a model. Every setting of method, first reduced block and kept share
is compared with the model itself: GFLOPs, latency (median and quartiles, interleaved with the model itself),
throughput, cosine of features, agreement of the highest channel, and mIoU when labels are given.
"""

import argparse
import csv
import importlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F

from clusterplug import patch
from clusterplug.patch._hosts import find_layout

COLUMNS = (
    'method', 'start', 'keep', 'gflops', 'ideal', 'median_ms', 'quartile1_ms', 'quartile3_ms', 'images_per_s',
    'speedup', 'cosine', 'argmax_agreement', 'miou', 'pareto',
)  # fmt: skip


def build(name: str, size: int, pretrained: str | None) -> torch.nn.Module:
    """Return the model that MODEL names, ready for inference."""
    if ':' in name:
        module, function = name.split(':')
        sys.path.insert(0, '.')
        return getattr(importlib.import_module(module), function)().eval()
    if name.startswith('transformers/'):
        import transformers

        cls = getattr(transformers, name.split('/', 1)[1])
        if pretrained:
            return cls.from_pretrained(pretrained).eval()
        config = cls.config_class()
        if hasattr(config, 'image_size'):
            config.image_size = size
        return cls(config).eval()
    import timm

    return timm.create_model(name, pretrained=pretrained is not None, img_size=size).eval()


def pictures(folder: str | None, number: int, size: int) -> torch.Tensor:
    """Return (N, 3, size, size) normalised pictures: those of a folder, or smooth random ones with detail."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(number, 3, 12, 12, generator=generator)
        fine = torch.randn(number, 3, size, size, generator=generator)
        return F.interpolate(coarse, size=(size, size), mode='bicubic') + 0.1 * fine
    import numpy as np
    from PIL import Image

    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not files:
        raise SystemExit(f'--images must be a folder with .jpg or .png files, {folder} has none')
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = []
    for path in files[:number]:
        image = Image.open(path).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
        images.append(((torch.from_numpy(np.array(image)).float() / 255 - mean) / std).permute(2, 0, 1))
    return torch.stack(images)


def output_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the dense output: features (B, N, C), or a map (B, C, H, W)."""
    output = model.forward_features(images) if hasattr(model, 'forward_features') else model(images)
    for name in ('logits', 'predicted_depth', 'last_hidden_state'):
        if hasattr(output, name):
            output = getattr(output, name)
            break
    if isinstance(output, (tuple, list)):
        output = output[0]
    if output.dim() == 4:
        channels_last = str(getattr(model, 'output_fmt', 'NCHW')).endswith('NHWC')  # timm's Swin
        output = output.flatten(1, 2) if channels_last else output.flatten(2).mT
    return output if output.dim() == 3 else output.flatten(1)[:, None]


def flops(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Return the GFLOPs (two for a multiply-add) of one image: products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    # The fused attention of the CPU is not counted, its plain form is.
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output_of(model, image)
    return counter.get_total_flops() / 1e9


def timed(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Return the seconds of one call, device work included."""
    cuda = images.device.type == 'cuda'
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    output_of(model, images)
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def miou(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean IoU of the highest channel (B, N, K) against labels (B, N), 255 left out."""
    predicted, valid = scores.argmax(-1), labels != 255
    values = []
    for label in labels[valid].unique():
        hit, is_label = (predicted == label) & valid, (labels == label)
        values.append(float((hit & is_label).sum() / (hit | is_label).sum()))
    return sum(values) / max(1, len(values))


def read_labels(folder: str | None, images: torch.Tensor, num_tokens: int) -> torch.Tensor | None:
    """Return (B, N) labels at the resolution of the output, from pictures of class numbers in a folder."""
    if folder is None:
        return None
    import numpy as np
    from PIL import Image

    side = round(num_tokens**0.5)
    files = sorted(Path(folder).glob('*.png'))[: len(images)]
    maps = [Image.open(path).resize((side, side), Image.Resampling.NEAREST) for path in files]
    return torch.stack([torch.from_numpy(np.array(each)).long().flatten() for each in maps])


@torch.inference_mode()
def sweep(model: torch.nn.Module, images: torch.Tensor, arguments: argparse.Namespace) -> list[dict]:
    """Return one row for each setting, the model itself first."""
    batch = images[:1].expand(arguments.batch, -1, -1, -1).contiguous()
    layout = find_layout(model)
    reference = output_of(model, images)
    labels = read_labels(arguments.labels, images, reference.shape[1] - layout.num_prefix)
    base_flops = flops(model, images[:1])
    rows = [dict.fromkeys(COLUMNS, '') | dict(method='none', gflops=base_flops, ideal=1.0, cosine=1.0, speedup=1.0)]
    rows[0] |= dict(argmax_agreement=1.0, keep=1.0)
    own = []
    for method in arguments.methods:
        if method == 'tome' and (layout.maps or layout.needs_grid):
            print(f'tome is left out: the blocks of {layout.host} need a grid')
            continue
        for start in arguments.starts or default_starts(layout):
            for keep in arguments.keeps:
                row = _measure(model, images, batch, reference, labels, layout, method, start, keep, arguments, own)
                rows.append(row | dict(ideal=base_flops / row['gflops']))
                print(_line(rows[-1]), flush=True)
    seconds = statistics.median(own)
    rows[0] |= dict(median_ms=1e3 * seconds, images_per_s=arguments.batch / seconds)
    if labels is not None:
        rows[0]['miou'] = miou(reference[:, layout.num_prefix :], labels)
    return mark_pareto(rows)


def default_starts(layout) -> list[int]:
    """Return blocks to start at: 1/6, 1/3 and 1/2 of all, or three in the longest stage of a host that has stages."""
    if not layout.stages:
        depth = len(layout.blocks)
        return sorted({depth // 6, depth // 3, depth // 2})
    longest = max(layout.stages, key=len)
    return sorted({longest.start + part for part in (0, len(longest) // 3, len(longest) // 2)})


def _measure(model, images, batch, reference, labels, layout, method, start, keep, arguments, own):
    times, base = [], []
    patch.apply(model, method, start=start, keep_ratio=keep)
    try:
        output = output_of(model, images)
        gflops = flops(model, images[:1])
        for repeat in range(arguments.repeats + 1):
            mine = timed(model, batch)
            patch.remove(model)
            plain = timed(model, batch)
            patch.apply(model, method, start=start, keep_ratio=keep)
            if repeat:  # the first warms up
                times.append(mine)
                base.append(plain)
    finally:
        patch.remove(model)
    own.extend(base)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    same = output.argmax(-1) == reference.argmax(-1)
    return dict.fromkeys(COLUMNS, '') | dict(
        method=method, start=start, keep=keep, gflops=gflops, median_ms=1e3 * quartiles[1],
        quartile1_ms=1e3 * quartiles[0], quartile3_ms=1e3 * quartiles[2],
        images_per_s=arguments.batch / quartiles[1], speedup=statistics.median(base) / quartiles[1],
        cosine=float(F.cosine_similarity(output.float(), reference.float(), dim=-1).mean()),
        argmax_agreement=float(same.float().mean()),
        miou='' if labels is None else miou(output[:, layout.num_prefix :], labels),
    )  # fmt: skip


def mark_pareto(rows: list[dict]) -> list[dict]:
    """Return the rows with ``pareto`` set: no other row is faster and at least as like the model."""
    for row in rows:
        beaten = any(
            other['speedup'] > row['speedup'] and other['cosine'] >= row['cosine'] for other in rows if other is not row
        )
        row['pareto'] = '' if beaten else 'yes'
    return rows


def recommend(rows: list[dict], speedup: float) -> dict | None:
    """Return the row of highest cosine among those that reach ``speedup``, or None."""
    fast = [row for row in rows if row['speedup'] >= speedup]
    return max(fast, key=lambda row: row['cosine']) if fast else None


def _line(row: dict) -> str:
    cells = [f'{row[name]:.4g}' if isinstance(row[name], float) else str(row[name]) for name in COLUMNS]
    return '| ' + ' | '.join(cells) + ' |'


def write(rows: list[dict], folder: Path, title: str) -> None:
    """Write the table as CSV and Markdown, and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'pareto.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    head = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
    (folder / 'pareto.md').write_text('\n'.join([*head, *map(_line, rows)]) + '\n')
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print('no picture: matplotlib is missing; pip install matplotlib')
        return
    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method in sorted({row['method'] for row in rows} - {'none'}):
        chosen = [row for row in rows if row['method'] == method]
        axes.scatter([row['speedup'] for row in chosen], [row['cosine'] for row in chosen], label=method)
    front = sorted((row for row in rows if row['pareto']), key=lambda row: row['speedup'])
    axes.plot([row['speedup'] for row in front], [row['cosine'] for row in front], color='gray', label='Pareto front')
    axes.set(xlabel='speed-up', ylabel='cosine with the model itself', title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / 'pareto.png', dpi=120)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='timm name, transformers/<class>, or module:function')
    parser.add_argument('--pretrained', nargs='?', const='default', help='trained weights (timm), or their name')
    parser.add_argument('--size', type=int, default=224, help='side of the images in pixels')
    parser.add_argument('--images', help='folder of pictures; random ones if not given')
    parser.add_argument('--labels', help='folder of .png class maps in the same order, for mIoU')
    parser.add_argument('--num-images', type=int, default=4)
    parser.add_argument('--batch', type=int, default=1, help='images at a time while timing')
    parser.add_argument('--methods', nargs='+', default=['expedit', 'tome', 'average'])
    parser.add_argument('--starts', nargs='+', type=int, help='first reduced blocks; default 1/6, 1/3, 1/2 of all')
    parser.add_argument('--keeps', nargs='+', type=float, default=[0.3, 0.5, 0.7], help='shares of tokens to keep')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--speedup', type=float, default=1.4, help='wished speed-up')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', default='work_dirs/token_pareto', help='folder for the table and the picture')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the sweep and say which setting to take."""
    arguments = parse(argv)
    torch.manual_seed(0)
    model = build(arguments.model, arguments.size, arguments.pretrained).to(arguments.device)
    images = pictures(arguments.images, arguments.num_images, arguments.size).to(arguments.device)
    print('| ' + ' | '.join(COLUMNS) + ' |')
    rows = sweep(model, images, arguments)
    write(rows, Path(arguments.out), f'{arguments.model} at {arguments.size}, batch {arguments.batch}')
    best = recommend(rows, arguments.speedup)
    if best is None:
        fastest = max(rows, key=lambda row: row['speedup'])
        print(f'no setting reaches {arguments.speedup:.2f} x; the fastest: {fastest["speedup"]:.2f} x')
        return 1
    print(
        f'for {arguments.speedup:.2f} x: patch.apply(model, {best["method"]!r}, start={best["start"]}, '
        f'keep_ratio={best["keep"]}), {best["speedup"]:.2f} x at cosine {best["cosine"]:.4f}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
