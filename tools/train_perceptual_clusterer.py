#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train the network of PerceptualClusterer on generated scatterplots, and write its weight file.

    OMP_NUM_THREADS=1 python tools/train_perceptual_clusterer.py --out OUT.npz             # the shipped weights
    python tools/train_perceptual_clusterer.py --out OUT.npz --kind pointnet --steps 2000

Plots of the families of clusterplug.datasets.scatterplots, turned and mirrored at random, 32 to 128 points each. Loss:
matched cross entropy (or --loss pairs), and the squared error of the agreement of four generated raters. The header of
OUT.npz holds the settings, the CPU time and the test figures. The same command gives the same weights on the same
machine.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.backbones import PointClusterNet
from clusterplug.core.command_line import add_out, parse, tool_parser
from clusterplug.core.files import save_arrays
from clusterplug.core.outputs import check_output_file
from clusterplug.datasets.scatterplots import make_scatterplot
from clusterplug.functional import adjusted_rand_index, matched_cross_entropy, pair_loss, point_agreement
from clusterplug.user_errors import run_tool

# family -> share of the training plots
SHARES = dict(blobs=0.2, moons=0.1, circles=0.1, curves=0.1, many=0.15, touching=0.15, shapes=0.2)
POINTS = 128


def parse_arguments(arguments=None):
    parser = tool_parser(__doc__)
    add_out(parser, '.npz file to write')
    parser.add_argument(
        '--kind', choices=('attention', 'pointnet'), default='attention', help='network (default: attention)'
    )
    parser.add_argument(
        '--loss', choices=('matched', 'pairs'), default='matched', help='what is minimized (default: matched)'
    )
    parser.add_argument('--num-clusters', type=int, default=8, help='columns of the network (default: 8)')
    parser.add_argument('--embed-dims', type=int, default=48, help='width (default: 48)')
    parser.add_argument('--depth', type=int, default=4, help='attention layers (default: 4)')
    parser.add_argument('--steps', type=int, default=9000, help='training steps (default: 9000)')
    parser.add_argument('--batch-size', type=int, default=16, help='plots of a step (default: 16)')
    parser.add_argument('--plots', type=int, default=20000, help='generated plots (default: 20000)')
    parser.add_argument('--lr', type=float, default=3e-3, help='peak of the one-cycle schedule (default: 0.003)')
    parser.add_argument('--test-plots', type=int, default=50, help='for each family (default: 50)')
    parser.add_argument('--seed', type=int, default=0, help='of plots and weights (default: 0)')
    return parse(parser, arguments)


def generate(number, seed):
    """Points (P, 128, 2), labels (P, 128), agreement (P, 128) of training plots."""
    rng = np.random.default_rng(seed)
    families = rng.choice(list(SHARES), number, p=list(SHARES.values()))
    plots = [make_scatterplot(family, POINTS, 4, rng) for family in families]
    points, labels, raters = (torch.from_numpy(np.stack(each)) for each in zip(*plots))
    return points.float(), labels, point_agreement(raters)


def batches(points, labels, agreement, steps, batch_size, generator):
    """Yield turned, mirrored and thinned plots."""
    for _ in range(steps):
        picked = torch.randint(len(points), (batch_size,), generator=generator)
        count = 8 * int(torch.randint(4, POINTS // 8 + 1, (), generator=generator))
        kept = torch.rand(POINTS, generator=generator).argsort()[:count]
        angle = 2 * torch.pi * torch.rand(batch_size, generator=generator)
        side = 2.0 * torch.randint(2, (batch_size,), generator=generator) - 1
        turn = torch.stack([angle.cos(), -angle.sin() * side, angle.sin(), angle.cos() * side], 1).view(-1, 2, 2)
        chosen = picked[:, None], kept
        yield points[chosen] @ turn.mT, labels[chosen], agreement[chosen]


def train(net, args, generator):
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps)
    loss_of = matched_cross_entropy if args.loss == 'matched' else pair_loss
    data = generate(args.plots, args.seed)
    net.train()
    for step, (points, labels, agreement) in enumerate(batches(*data, args.steps, args.batch_size, generator), 1):
        output = net(points)
        loss = loss_of(output.logits, labels) + (output.agreement - agreement).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f'step {step}: loss {loss.item():.3f}, {time.process_time():.0f} CPU s', file=sys.stderr, flush=True)


@torch.no_grad()
def evaluate(net, number, seed):
    """Mean ARI of each family of test plots, argmax of the network alone, and the error of the agreement."""
    net.eval()
    figures, errors, spread = {}, [], []
    for family in SHARES:
        rng = np.random.default_rng([seed, 1])
        plots = [make_scatterplot(family, 64, 4, rng) for _ in range(number)]
        output = net(torch.from_numpy(np.stack([each.points for each in plots])).float())
        scores = [
            adjusted_rand_index(torch.from_numpy(plot.labels), logits.argmax(-1))
            for plot, logits in zip(plots, output.logits)
        ]
        figures[family] = round(float(np.mean(scores)), 4)
        target = point_agreement(torch.from_numpy(np.stack([each.raters for each in plots])))
        errors.append((output.agreement - target).abs())
        spread.append(target)
    figures['card'] = round(float(np.mean([figures[name] for name in ('blobs', 'moons', 'circles')])), 4)
    target = torch.cat(spread)
    figures['agreement_error'] = round(float(torch.cat(errors).mean()), 4)
    figures['agreement_error_of_the_mean'] = round(float((target - target.mean()).abs().mean()), 4)
    return figures


def main(arguments=None):
    args = parse_arguments(arguments)
    check_output_file(args.out, option='OUT')  # before an hour of training
    begin = time.process_time()
    options = dict(
        num_clusters=args.num_clusters, in_channels=2, kind=args.kind, embed_dims=args.embed_dims, depth=args.depth,
        noise=False, agreement=True, dropout=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # weights and dropout draw from the global generator
        torch.manual_seed(args.seed)
        net = PointClusterNet(**options)
        train(net, args, torch.Generator().manual_seed(args.seed))
    figures = evaluate(net, args.test_plots, args.seed)
    recipe = {name: value for name, value in vars(args).items() if name != 'out'}
    header = dict(
        network=options, recipe=recipe, shares=SHARES, figures=figures, cpu_seconds=round(time.process_time() - begin)
    )
    save_arrays(args.out, {name: tensor.numpy() for name, tensor in net.state_dict().items()}, header)
    print(figures, f'{header["cpu_seconds"]} CPU s')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'train_perceptual_clusterer'))
