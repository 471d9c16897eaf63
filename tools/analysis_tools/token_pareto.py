#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What token reduction buys and costs on one model: a table, a picture, and a setting for a target speed-up.

    python tools/analysis_tools/token_pareto.py vit_small_patch14_dinov2 --size 518 --images pictures/ --speedup 1.4
    python tools/analysis_tools/token_pareto.py transformers/Dinov2Model --size 224
    python tools/analysis_tools/token_pareto.py my_package.models:build_segmenter --size 640 --labels labels/

MODEL is a name of timm, transformers/CLASS (random weights of its default config; --pretrained NAME for
trained ones), or module:function that returns a model. Every setting of method, first reduced block and kept share
is compared with the model itself: GFLOPs, latency (median and quartiles, interleaved with the model itself),
throughput, cosine of features, agreement of the highest channel, and mIoU when labels are given. Pictures are
normalized as the model's own data config says. The table is written after every setting.
"""

import argparse
import csv
import io
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from _token_models import build, miou, normalization, pictures, read_labels

from clusterplug import patch
from clusterplug.core.files import whole_file, write_bytes
from clusterplug.core.outputs import output_folder, settings_of
from clusterplug.patch.hosts import find_layout
from clusterplug.user_errors import run_tool

COLUMNS = (
    'method', 'start', 'keep', 'gflops', 'ideal', 'median_ms', 'quartile1_ms', 'quartile3_ms', 'images_per_s',
    'speedup', 'cosine', 'argmax_agreement', 'miou', 'pareto',
)  # fmt: skip


METHODS = {
    'expedit': dict(method='expedit'),
    'tome': dict(method='tome'),
    'tome_every_block': dict(method='tome', every_block=True),
    'average': dict(method='average'),
}
SPEEDUP = 1.4


def output_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the dense output (B, N, C): features, or the pixels of a map."""
    return _dense(model, images)[0]


def _dense(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """Return the dense output (B, N, C), and (H, W) where it was a map and not a sequence with tokens in front."""
    output = model.forward_features(images) if hasattr(model, 'forward_features') else model(images)
    for name in ('logits', 'predicted_depth', 'last_hidden_state'):
        if hasattr(output, name):
            output = getattr(output, name)
            break
    if isinstance(output, (tuple, list)):
        output = output[0]
    if output.dim() == 4:
        channels_last = str(getattr(model, 'output_fmt', 'NCHW')).endswith('NHWC')  # timm's Swin
        size = tuple(output.shape[1:3] if channels_last else output.shape[2:])
        return output.flatten(1, 2) if channels_last else output.flatten(2).mT, size
    return output if output.dim() == 3 else output.flatten(1)[:, None], None


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


@torch.inference_mode()
def sweep(model: torch.nn.Module, images: torch.Tensor, arguments: argparse.Namespace, keep_rows=None) -> list[dict]:
    """Return one row for each setting, the model itself first; ``keep_rows(rows)`` is called after each."""
    batch = images[:1].expand(arguments.batch_size, -1, -1, -1).contiguous()
    layout = find_layout(model)
    settings = _settings(model, layout, arguments)
    try:
        reference, size = _dense(model, images)
    except Exception as error:
        raise SystemExit(f'{arguments.model} fails on pictures of {arguments.size} pixels: {error}') from error
    # A sequence of tokens begins with those in front of the map; a map holds none.
    front = layout.num_prefix if size is None else 0
    if arguments.labels and size is None:
        side = round((reference.shape[1] - front) ** 0.5)
        size = (side, side)
        if side * side + front != reference.shape[1] or side < 2:
            raise SystemExit(f'--labels needs a model with a dense output, got {tuple(reference.shape)}')
    labels = read_labels(arguments.labels, len(images), size, reference.shape[-1])
    base_flops = flops(model, images[:1])
    rows = [dict.fromkeys(COLUMNS, '') | dict(method='none', gflops=base_flops, ideal=1.0, cosine=1.0, speedup=1.0)]
    rows[0] |= dict(argmax_agreement=1.0, keep=1.0)
    if labels is not None:
        labels = labels.to(images.device)
        rows[0]['miou'] = miou(reference[:, front:], labels)
    own = []
    for method, start, keep in settings:
        try:
            row = _measure(model, images, batch, reference, labels, front, method, start, keep, arguments, own)
        except Exception as error:
            print(f'{method}, start {start}, keep {keep} is left out: {type(error).__name__}: {error}')
            continue
        rows.append(row | dict(ideal=base_flops / row['gflops']))
        seconds = statistics.median(own)
        rows[0] |= dict(median_ms=1e3 * seconds, images_per_s=arguments.batch_size / seconds)
        print(_line(rows[-1]), flush=True)
        if keep_rows is not None:
            keep_rows(mark_pareto(rows))
    return mark_pareto(rows)


def _settings(model: torch.nn.Module, layout, arguments: argparse.Namespace) -> list[tuple[str, int, float]]:
    """Return (method, start, keep) of all settings, each tried on the model before the first is measured."""
    found = []
    for method in arguments.methods:
        if method.startswith('tome') and (layout.maps or layout.needs_grid):
            print(f'{method} is left out: the blocks of {layout.host} need a grid')
            continue
        for start in default_starts(layout) if arguments.starts is None else arguments.starts:
            for keep in arguments.keeps:
                patch.apply(model, **METHODS[method], start=start, keep_ratio=keep)
                patch.remove(model)
                found.append((method, start, keep))
    if not found:
        raise SystemExit('nothing to measure: choose --methods expedit or average for this model')
    return found


def default_starts(layout) -> list[int]:
    """Return blocks to start at: 1/6, 1/3 and 1/2 of all, or three in the longest stage of a host that has stages."""
    if not layout.stages:
        depth = len(layout.blocks)
        return sorted({depth // 6, depth // 3, depth // 2})
    longest = max(layout.stages, key=len)
    return sorted({longest.start + part for part in (0, len(longest) // 3, len(longest) // 2)})


def _measure(model, images, batch, reference, labels, front, method, start, keep, arguments, own):
    times, base = [], []
    patch.apply(model, **METHODS[method], start=start, keep_ratio=keep)
    try:
        output = output_of(model, images)
        gflops = flops(model, images[:1])
        for repeat in range(arguments.repeats + 1):
            mine = timed(model, batch)
            patch.remove(model)
            plain = timed(model, batch)
            patch.apply(model, **METHODS[method], start=start, keep_ratio=keep)
            if repeat:  # the first warms up
                times.append(mine)
                base.append(plain)
    finally:
        patch.remove(model)
    if output.shape != reference.shape:
        raise ValueError(
            f'the output has shape {tuple(output.shape)}, that of the model itself {tuple(reference.shape)}'
        )
    own.extend(base)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    same = output.argmax(-1) == reference.argmax(-1)
    return dict.fromkeys(COLUMNS, '') | dict(
        method=method, start=start, keep=keep, gflops=gflops, median_ms=1e3 * quartiles[1],
        quartile1_ms=1e3 * quartiles[0], quartile3_ms=1e3 * quartiles[2],
        images_per_s=arguments.batch_size / quartiles[1], speedup=statistics.median(base) / quartiles[1],
        cosine=float(F.cosine_similarity(output.float(), reference.float(), dim=-1).mean()),
        argmax_agreement=float(same.float().mean()),
        miou='' if labels is None else miou(output[:, front:], labels),
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


def write_table(rows: list[dict], folder: Path) -> None:
    """Write the table as CSV and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / 'pareto.csv', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    head = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
    write_bytes(folder / 'pareto.md', ('\n'.join([*head, *map(_line, rows)]) + '\n').encode())


def draw(rows: list[dict], folder: Path, title: str) -> None:
    """Write the picture."""
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
    axes.set(xlabel='speed-up', ylabel='cosine with the model itself')
    axes.set_title(title, parse_math=False)
    axes.legend()
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    write_bytes(folder / 'pareto.png', content.getvalue())


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('model', help='timm name, transformers/CLASS, or module:function')
    add('--pretrained', nargs='?', const='default', metavar='NAME', help='trained weights: those of a timm model, of '
        'a tag (timm) or name (transformers) if given (default: random weights)')  # fmt: skip
    add('--size', type=_count, default=224, help='side of the pictures in pixels (default: 224)')
    add('--images', help='folder of pictures, .jpg or .png (default: random ones)')
    add('--labels', help='folder of .png class maps in the same order, 255 = ignored, for mIoU (default: no mIoU)')
    add('--num-images', type=_count, default=4, help='pictures that agreement is measured on (default: 4)')
    add('--batch-size', '--batch', type=_count, default=1, help='pictures at a time while timing (default: 1)')
    add('--methods', nargs='+', choices=list(METHODS), default=['expedit', 'tome', 'average'], help='methods to '
        'compare (default: expedit tome average)')  # fmt: skip
    add('--starts', nargs='+', type=int, help='first reduced blocks, from 0 (default: 1/6, 1/3 and 1/2 of all)')
    add('--keeps', nargs='+', type=float, default=[0.3, 0.5, 0.7], help='shares of tokens to keep, above 0, at most 1 '
        '(default: 0.3 0.5 0.7)')  # fmt: skip
    add('--repeats', type=_count, default=5, help='timed calls of each setting (default: 5)')
    add('--speedup', type=float, help=f'target speed-up, a factor; exit code 1 if none reaches it (default: recommend '
        f'for {SPEEDUP}, or the fastest)')  # fmt: skip
    add('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    add('--out', default='work_dirs/token_pareto', help='folder for the table and the picture (default: '
        'work_dirs/token_pareto)')  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the sweep and say which setting to take."""
    arguments = parse(argv)
    torch.manual_seed(0)
    try:
        folder = Path(arguments.out)
        sources = [source for source in (arguments.images, arguments.labels) if source]
        names = ('pareto.csv', 'pareto.md', 'pareto.png')
        with output_folder(folder, 'token_pareto', files=names, sources=sources, settings=settings_of(arguments)):
            device = torch.empty(1, device=arguments.device).device
            model = build(arguments.model, arguments.size, arguments.pretrained).to(device)
            scale = normalization(model, arguments.model, arguments.pretrained)
            images = pictures(arguments.images, arguments.num_images, arguments.size, scale).to(device)
            print('| ' + ' | '.join(COLUMNS) + ' |')
            rows = sweep(model, images, arguments, lambda rows: write_table(rows, folder))
            write_table(rows, folder)
            draw(rows, folder, f'{arguments.model} at {arguments.size}, batch {arguments.batch_size}')
    except KeyboardInterrupt:
        print(f'stopped; what was measured is in {arguments.out}', file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, RuntimeError, AssertionError) as error:
        print(f'token_pareto: {error}', file=sys.stderr)
        return 1
    return _recommend(rows, arguments.speedup)


def _recommend(rows: list[dict], speedup: float | None) -> int:
    """Print the setting to take, and return the exit code."""
    measured = [row for row in rows if row['method'] != 'none']
    if not measured:
        print('no setting could be measured')
        return 1
    best = recommend(measured, SPEEDUP if speedup is None else speedup)
    if best is None:
        best = max(measured, key=lambda row: row['speedup'])
        if speedup is not None:
            print(f'no setting reaches {speedup:.2f} x; the fastest: {best["speedup"]:.2f} x')
            return 1
    options = ''.join(f', {name}={value!r}' for name, value in METHODS[best['method']].items() if name != 'method')
    print(
        f'for {best["speedup"]:.2f} x at cosine {best["cosine"]:.4f}: patch.apply(model, '
        f'{METHODS[best["method"]]["method"]!r}, start={best["start"]}, keep_ratio={best["keep"]}{options})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'token_pareto'))
