# SPDX-License-Identifier: Apache-2.0
"""Token clustering: the operators against the dense form, whole transformers against their FLOPs, methods side by side.

    OMP_NUM_THREADS=1 python benchmarks/tokens.py operators
    OMP_NUM_THREADS=1 python benchmarks/tokens.py models --arch small base large [--compile]
    OMP_NUM_THREADS=1 python benchmarks/tokens.py methods --arch small

Process time of one CPU thread, all entries of a table interleaved, medians. Results are compared with float64 before
anything is timed. Fused attention is on in every entry. Models have random weights: speed does not depend on them.
"""

import argparse
import statistics
import time
from pathlib import Path
from sys import path

path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from _timing import header, interleaved, published

from clusterplug import patch
from clusterplug.functional import cluster_tokens, combine_tokens, reconstruct_tokens, token_neighbors, token_spread

ARCHS = {'small': ('vit_small_patch16_224', 12, 384), 'base': ('vit_base_patch16_224', 12, 768),
         'large': ('vit_large_patch16_224', 24, 1024)}  # fmt: skip
START = {12: 5, 24: 10}


def dense_clustering(x, grid, num_iters=5, temperature=50.0, window=5):
    """The published form: all distances in each iteration, far ones made huge, and once more for the labels."""
    _, height, width, _ = x.shape
    centers = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).flatten(2).mT
    tokens = x.flatten(1, 2)
    row, column = torch.arange(height) * grid[0] // height, torch.arange(width) * grid[1] // width
    near_row = (row[:, None] - torch.arange(grid[0])).abs() <= window // 2
    near_column = (column[:, None] - torch.arange(grid[1])).abs() <= window // 2
    near = (near_row[:, None, :, None] & near_column[None, :, None, :]).reshape(height * width, -1)
    penalty = (~near).to(x.dtype) * 1e16

    def distances():
        squares = tokens.square().sum(-1)[..., None] + centers.square().sum(-1)[:, None]
        return squares - 2 * (tokens @ centers.mT)

    for _ in range(num_iters):
        weights = (-(distances() + penalty) / temperature).softmax(-1)
        centers = (weights.mT @ tokens) / weights.sum(1).clamp_min(1e-16)[..., None]
    distances().argmin(-1)
    return centers.unflatten(1, grid)


def dense_reconstruction(clustered, x, centers, num_neighbors=20, temperature=50.0):
    """The published form, with weights that add up to one: all weights, small ones set to zero, one product."""
    tokens, flat = x.flatten(1, 2), centers.flatten(1, 2)
    squares = tokens.square().sum(-1)[..., None] + flat.square().sum(-1)[:, None]
    weights = (-(squares - 2 * (tokens @ flat.mT)) / temperature).softmax(-1)
    least = weights.topk(num_neighbors).values[..., -1:]
    weights = weights.masked_fill(weights < least, 0)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ clustered.flatten(1, 2)).view(*x.shape[:3], -1)


def smooth_map(size, channels, seed=0):
    """Values that change slowly over the map and have detail, as features of pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 8, 8, generator=generator)
    fine = torch.randn(1, size, size, channels, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode='bicubic').permute(0, 2, 3, 1) + 0.2 * fine


def operators(repeats):
    for size, cells, channels, wanted in ((40, 28, 1024, 3.5), (64, 40, 256, 6.0)):
        x, grid = smooth_map(size, channels), (cells, cells)
        exact = dense_clustering(x.double(), grid)
        state = cluster_tokens(x, grid)
        refined = torch.randn(1, *grid, channels)
        rebuilt = dense_reconstruction(refined.double(), x.double(), state.centers.double())
        largest = float(exact.abs().max())
        error = float((state.centers - exact).abs().max()) / largest
        dense_error = float((dense_clustering(x, grid) - exact).abs().max()) / largest
        largest_back = float(rebuilt.abs().max())
        back_error = float((reconstruct_tokens(refined, state) - rebuilt).abs().max()) / largest_back
        dense_back_error = float((dense_reconstruction(refined, x, state.centers) - rebuilt).abs().max()) / largest_back
        print(
            f'\n{size}x{size} -> {cells}x{cells}, {channels} channels. Largest error against float64, over the largest'
        )
        print(
            f'value: clustering {error:.1e} (dense form {dense_error:.1e}), reconstruction {back_error:.1e} (dense form'
        )
        print(f'{dense_back_error:.1e}).\n\n| operator | ms | dense form / this |\n|---|---|---|')
        entries = {
            'dense clustering': lambda: dense_clustering(x, grid),  # noqa: B023
            'clustering': lambda: cluster_tokens(x, grid),  # noqa: B023
            'dense reconstruction': lambda: dense_reconstruction(refined, x, state.centers),  # noqa: B023
            'reconstruction, all clusters': lambda: reconstruct_tokens(refined, state),  # noqa: B023
            'reconstruction, near clusters': lambda: reconstruct_tokens(refined, state, window=5),  # noqa: B023
        }
        ms = {name: statistics.median(times) for name, times in interleaved(entries, repeats).items()}
        for name, value in ms.items():
            dense = ms[f'dense {name.split(",")[0].removeprefix("dense ")}']
            print(f'| {name} | {value:.1f} | {dense / value:.1f} |')
        for name in ('all', 'near'):
            mine = f'reconstruction, {name} clusters'
            pair = ms['clustering'] + ms[mine]
            both = (ms['dense clustering'] + ms['dense reconstruction']) / pair
            print(f'| both together, {name} clusters | {pair:.1f} | {both:.1f} |')
        ratio = ms['dense clustering'] / ms['clustering']
        reached = 'reached' if ratio >= wanted and error < 1e-5 else 'NOT reached'
        print(f'\nTarget: clustering {wanted} times faster than dense, equal to 1e-5: {ratio:.1f} times, {reached}.')


def multiplications(tokens, channels):
    """Multiply-adds of one block."""
    return 12 * tokens * channels**2 + 2 * tokens**2 * channels


def build(arch, size):
    import timm

    name, depth, channels = ARCHS[arch]
    model = timm.create_model(name, pretrained=False, img_size=size, num_classes=0, global_pool='').eval()
    return model, depth, channels


@torch.inference_mode()
def models(archs, size, cells, compiled, repeats, methods=('expedit',)):
    for arch in archs:
        model, depth, channels = build(arch, size)
        image = torch.randn(1, 3, size, size)
        length, start = size // 16, START[depth]
        full = depth * multiplications(length**2 + 1, channels)
        short = start * multiplications(length**2 + 1, channels) + (depth - start) * multiplications(
            cells**2 + 1, channels
        )
        entries = {'plain': torch.compile(model) if compiled else model}
        for method in methods:
            reduced, _, _ = build(arch, size)
            reduced = patch.apply(reduced, method, start=start, grid=(cells, cells))
            entries[method] = torch.compile(reduced) if compiled else reduced
        calls = {name: (lambda run=run, image=image: run(image)) for name, run in entries.items()}
        times = interleaved(calls, repeats)
        ms = {name: statistics.median(values) for name, values in times.items()}
        print(
            f'\nViT-{arch} at {size}, {length}x{length} -> {cells}x{cells} after {start} of {depth} blocks, batch 1, ',
            end='',
        )
        ideal = full / short
        kind = 'compiled' if compiled else 'eager'
        print(f'{kind}; ideal {ideal:.3f} (blocks: {full / 1e9:.0f} -> {short / 1e9:.0f} GMAC)')
        print('\n| model | ms (fastest) | gain | share of the ideal |\n|---|---|---|---|')
        for name, value in ms.items():
            gain = ms['plain'] / value
            wanted = 1 if name == 'plain' else ideal
            print(f'| {name} | {value:.0f} ({min(times[name]):.0f}) | {gain:.3f} | {gain / wanted:.3f} |')
        x = torch.randn(1, length, length, channels)
        own = statistics.median(_timed(lambda: _layers(x, (cells, cells))) for _ in range(5))  # noqa: B023
        share = 100 * own / ms[methods[0]]
        print(f'\nClustering and reconstruction alone: {own:.0f} ms, {share:.1f} % of the reduced model.')


def _layers(x, grid):
    state = cluster_tokens(x, grid, temperature=0.2 * token_spread(x, grid))
    return combine_tokens(state.centers, token_neighbors(state, window=5))


def _timed(call):
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', choices=('operators', 'models', 'methods'))
    parser.add_argument('--arch', nargs='+', choices=tuple(ARCHS), default=['small'])
    parser.add_argument('--size', type=int, default=640, help='side of the image in pixels')
    parser.add_argument('--cells', type=int, default=28, help='side of the reduced map')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--page', help='page whose part "tokens-PART" (models: with -compiled) is replaced')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with published(arguments.page, f'tokens-{arguments.part}' + '-compiled' * arguments.compile):
        header(('timm',))
        if arguments.part == 'operators':
            operators(arguments.repeats)
            return
        methods = ('expedit',) if arguments.part == 'models' else ('expedit', 'tome', 'average')
        models(arguments.arch, arguments.size, arguments.cells, arguments.compile, arguments.repeats, methods)


if __name__ == '__main__':
    main()
