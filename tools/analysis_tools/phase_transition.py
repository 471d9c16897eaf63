#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw when subspaces are recovered (error against N / d) and the rank of the exact denoiser (against noise).

    python tools/analysis_tools/phase_transition.py --width 48 --dims 6 6 --out transition.png

Data are mixtures of low-rank Gaussians with known bases. The error is the largest Frobenius distance of projectors of
the best matching, the mean over draws; the rank is that of the Jacobian at 99 % of its norm, the median over samples.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--width', type=int, default=48, help='numbers of a point (default: %(default)s)')
    parser.add_argument(
        '--dims', type=int, nargs='+', default=[6, 6], help='dimensions of the subspaces (default: 6 6)'
    )
    parser.add_argument(
        '--ratios', type=float, nargs='+', default=[0.5, 1.0, 1.5, 2.0, 4.0, 8.0],
        help='samples of a subspace, in multiples of its dimension (default: 0.5 1.0 1.5 2.0 4.0 8.0)',
    )  # fmt: skip
    parser.add_argument(
        '--noises', type=float, nargs='+', default=[0.05, 0.1, 0.3, 1.0, 3.0, 10.0],
        help='noise over signal of the denoiser (default: 0.05 0.1 0.3 1.0 3.0 10.0)',
    )  # fmt: skip
    parser.add_argument('--data-noise', type=float, default=0.01, help='noise of the data (default: %(default)s)')
    parser.add_argument('--draws', type=int, default=5, help='draws of the data (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('transition.png'), help='PNG to write (default: %(default)s)')
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    from clusterplug.visualization import save_phase_transition

    try:
        if len(set(args.dims)) > 1:
            raise ValueError(f'--dims must be equal, as k-subspaces has one dimension, got {args.dims}')
        check_output_file(args.out)
        errors = [recovery_error(args, max(1, round(ratio * args.dims[0]))) for ratio in args.ratios]
        ranks = [denoiser_rank(args, noise) for noise in args.noises]
        save_phase_transition(args.out, args.ratios, errors, args.noises, ranks)
    except (OSError, ValueError) as error:
        sys.exit(f'phase_transition: {error}')
    for ratio, error in zip(args.ratios, errors):
        print(f'N / d {ratio:g}: error {error:.3f}')
    for noise, rank in zip(args.noises, ranks):
        print(f'noise {noise:g}: rank {rank:g} of {args.width}')
    print(args.out)
    return 0


def recovery_error(args, count: int) -> float:
    import torch

    from clusterplug.datasets import MoLRG
    from clusterplug.functional import k_subspaces, linear_assignment

    found = []
    for seed in range(args.draws):
        data = MoLRG(args.width, args.dims, count, noise=args.data_noise, seed=seed, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        bases = k_subspaces(data.x, len(args.dims), args.dims[0], num_restarts=30, generator=generator).bases
        first, second = ([basis @ basis.T for basis in each] for each in (bases, data.bases))
        cost = torch.stack([torch.stack([(p - q).norm() for q in second]) for p in first])
        found.append(float(cost[linear_assignment(cost)].max()))
    return statistics.mean(found)


def denoiser_rank(args, noise: float) -> float:
    import torch

    from clusterplug.datasets import MoLRG
    from clusterplug.functional import jacobian_svd, low_rank_posterior_mean, numerical_rank

    data = MoLRG(args.width, args.dims, 1, seed=0, dtype=torch.float64)
    drawn = torch.randn(data.x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def denoise(x):
        return low_rank_posterior_mean(x[None], data.bases, signal=1.0, noise=noise)[0]

    ranks = [int(numerical_rank(jacobian_svd(denoise, x, args.width).s)) for x in data.x + noise * drawn]
    return statistics.median(ranks)


if __name__ == '__main__':
    sys.exit(run_tool(main, 'phase_transition'))
