# SPDX-License-Identifier: Apache-2.0
"""How many labels of a balanced assignment are those of its limit, by the number of Sinkhorn iterations.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/sinkhorn_labels.py             # some seconds
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/sinkhorn_labels.py --draws 30

Rows as in ``PointClusterLoss`` (epsilon 0.04, 64 dimensions): isotropic ones, and tight ones around six modes of
unequal weight, with the centers at rows. The limit is what 3,000 iterations in fp64 give. The shares do not depend on
the machine.
"""

import argparse

import torch
import torch.nn.functional as F

from clusterplug.functional import sinkhorn_log_plan
from clusterplug.functional.transport import assign_subclasses

WEIGHTS = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
SIZES = [(80, 40), (200, 40), (400, 40), (400, 10)]  # rows, centers
ITERATIONS = [3, 10, 16, 50, 200, None]  # None: the default of the loss


def draw(noise: float | None, num_rows: int, num_centers: int, generator: torch.Generator):
    """Unit rows and centers; ``noise`` around the modes, or None for isotropic ones."""
    if noise is None:
        rows = torch.randn(num_rows, 64, generator=generator)
        return F.normalize(rows, dim=1), F.normalize(torch.randn(num_centers, 64, generator=generator), dim=1)
    modes = F.normalize(torch.randn(len(WEIGHTS), 64, generator=generator), dim=1)
    rows = modes[torch.multinomial(WEIGHTS, num_rows, True, generator=generator)]
    rows = F.normalize(rows + noise * torch.randn(num_rows, 64, generator=generator), dim=1)
    return rows, rows[torch.randperm(num_rows, generator=generator)[:num_centers]]


def labels(rows: torch.Tensor, centers: torch.Tensor, num_iters: int | None) -> torch.Tensor:
    valid = torch.arange(len(rows) + 1)[None] < len(rows)
    padded = F.pad(rows, (0, 0, 0, 1))[None], F.pad(centers, (0, 0, 0, 1))[None]
    ids, *_ = assign_subclasses(*padded, valid=valid, num_active=torch.tensor([len(centers)]), num_iters=num_iters)
    return ids[0, :-1]


def shares(noise: float | None, num_draws: int) -> dict:
    """Smallest, mean and largest share of the limit's labels for each number of iterations."""
    found = {number: [] for number in ITERATIONS}
    for seed in range(num_draws):
        for num_rows, num_centers in SIZES:
            rows, centers = draw(noise, num_rows, num_centers, torch.Generator().manual_seed(seed))
            limit = sinkhorn_log_plan(rows.double() @ centers.double().mT, epsilon=0.04, num_iters=3000).argmax(-1)
            for number in ITERATIONS:
                found[number].append((labels(rows, centers, number) == limit).float().mean())
    return {number: torch.stack(values) * 100 for number, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draws', type=int, default=5, help='draws of each size')
    options = parser.parse_args()
    print('| rows | ' + ' | '.join('default' if number is None else f'{number}' for number in ITERATIONS) + ' |')
    print('|---|' + '---|' * len(ITERATIONS))
    for noise in (None, 0.3, 0.1, 0.05):
        cells = [f'{v.mean():.1f} ({v.min():.1f})' for v in shares(noise, options.draws).values()]
        print(f'| {"isotropic" if noise is None else f"tight, noise {noise}"} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
