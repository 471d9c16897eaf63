#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find what a generator can change most at a sample, and draw it: one row a direction, one column a step.

    python tools/latent_directions.py --config CONFIG --checkpoint MODEL.pth --out directions.png
    python tools/latent_directions.py --config CONFIG --checkpoint MODEL.pth --region 0 12 0 12
    python tools/latent_directions.py --generator my_package.my_module:make_generator --shape 128

With a config of a DenoisingModel, a noisy sample is moved at one noise level of the sampler and sampled on. With
--generator, a function without arguments that returns a module or function, latent codes of --shape (1, *SHAPE) are
mapped to images (1, C, H, W) in -1 .. 1. Directions are the leading right singular vectors of the Jacobian; with
--region those that change its pixels and, to first order, no others. Prints the strength of each inside and outside.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='config whose model is a DenoisingModel (default: none)')
    parser.add_argument('--checkpoint', help='its weights (default: none, random weights)')
    parser.add_argument('--generator', help='MODULE:FUNCTION that makes a generator (default: none)')
    parser.add_argument('--shape', type=int, nargs='+', help='shape of a latent code or image (default: 3 24 24)')
    parser.add_argument('--rank', type=int, default=6, help='number of directions (default: %(default)s)')
    parser.add_argument(
        '--steps', type=float, nargs='+', default=[-6.0, -3.0, 0.0, 3.0, 6.0],
        help='steps along each (default: -6.0 -3.0 0.0 3.0 6.0)',
    )  # fmt: skip
    parser.add_argument(
        '--region', type=int, nargs=4, metavar=('TOP', 'BOTTOM', 'LEFT', 'RIGHT'),
        help='pixels that may change, ends not included (default: all)',
    )  # fmt: skip
    parser.add_argument(
        '--null-rank', type=int, default=10, help='directions of the rest that are avoided (default: %(default)s)'
    )
    parser.add_argument('--noise', type=float, default=0.9, help='noise level of the edit (default: %(default)s)')
    parser.add_argument('--levels', type=int, default=40, help='levels of the whole sampler (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the sample (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('directions.png'), help='PNG to write (default: %(default)s)')
    args = parser.parse_args(arguments)
    if bool(args.config) == bool(args.generator):
        parser.error('give either --config or --generator')
    if args.generator and (':' not in args.generator or not args.shape):
        parser.error('--generator needs MODULE:FUNCTION and the --shape of a latent code')
    return args


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    import torch

    from clusterplug.analysis import latent_directions

    generator = torch.Generator().manual_seed(args.seed)
    try:
        check_output_file(args.out, [each for each in (args.config, args.checkpoint) if each])
        if args.config:
            fn, x, draw = of_diffusion(args, generator)
        else:
            fn, x, draw = of_generator(args, generator)
        with torch.no_grad():
            start = fn(x)
        mask = None
        if args.region:
            top, bottom, left, right = args.region
            mask = torch.zeros(start.shape, dtype=torch.bool)
            mask[..., top:bottom, left:right] = True
        found = latent_directions(fn, x, args.rank, mask=mask, null_rank=args.null_rank)
        rows = [draw(direction) for direction in found.directions]
        save_grid(args.out, rows, [f'{value:.3g}' for value in found.values], args.steps)
    except (OSError, ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        sys.exit(f'latent_directions: {error}')
    for number, (value, outside) in enumerate(zip(found.values.tolist(), found.outside.tolist())):
        print(f'direction {number}: changes {value:.4g} a unit' + (f', outside {outside:.4g}' if args.region else ''))
    print(args.out)
    return 0


def of_diffusion(args, generator):
    """The denoiser at one level, the sample there, and a function that draws a row of edits."""
    import torch

    from clusterplug.analysis import edit_sample, run_sampler, vp_levels
    from clusterplug.checkpoints import read_checkpoint
    from clusterplug.cli import load_config
    from clusterplug.registry import MODELS

    model = MODELS.build(load_config(args.config).model)
    if not hasattr(model, 'denoise'):
        raise ValueError(f'--config must have a model with denoise, got {type(model).__name__}')
    if args.checkpoint:
        content = read_checkpoint(args.checkpoint)
        state = content.get('state_dict', content)
        model.load_state_dict(state)
    model.eval().requires_grad_(False)
    levels = vp_levels(args.levels)
    first = [number for number, (_, noise) in enumerate(levels) if noise <= args.noise]
    if not first:
        raise ValueError(f'--noise must be at least the smallest level, {levels[-1][1]:g}, got {args.noise}')
    x = torch.randn(1, *(args.shape or (3, 24, 24)), generator=generator)
    x = run_sampler(model.denoise, x, levels[: first[0] + 1], trajectory=True)[-2][0]
    signal, noise = levels[first[0]]

    def denoise(x):
        return model.denoise(x[None], x.new_full((1,), signal), x.new_full((1,), noise))[0]

    def draw(direction):
        return edit_sample(model.denoise, x, direction, args.steps, levels[first[0] :])

    return denoise, x, draw


def of_generator(args, generator):
    import torch

    from clusterplug.analysis import traverse

    module, _, name = args.generator.partition(':')
    sys.path.insert(0, '.')
    importlib.invalidate_caches()
    network = getattr(importlib.import_module(module), name)()
    if isinstance(network, torch.nn.Module):
        network.eval().requires_grad_(False)

    def generate(z):
        return network(z[None])[0]

    z = torch.randn(*args.shape, generator=generator)
    return generate, z, lambda direction: traverse(generate, z, direction[None], args.steps)[0]


def save_grid(path, rows, names, steps) -> None:
    from clusterplug.visualization import save_image_grid

    images = [[image.detach().float().cpu().numpy() for image in row] for row in rows]
    save_image_grid(path, images, names, [f'{step:+g}' for step in steps])


if __name__ == '__main__':
    sys.exit(run_tool(main, 'latent_directions'))
