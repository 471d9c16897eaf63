#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Which units do two trained networks share? Tables and pictures: compare_networks.py CONFIG_A CKPT_A CONFIG_B CKPT_B.

Both see the validation set of CONFIG_A. OUT gets units.json, curves.png (correlation of matched units), and for each
layer correlation_N.png (before and after matching) and maps_N.png (activations of the best pairs).
"""

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.outputs import output_folder, settings_of
from clusterplug.user_errors import check_packages, run_tool

FILES = ('units.json', 'curves.png', 'correlation_*.png', 'maps_*.png')


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config_a', help='config with a val_dataloader: a path, or package::path')
    parser.add_argument('checkpoint_a', help="checkpoint of A, or 'none' for the weights at the start")
    parser.add_argument('config_b', help='config of the other network')
    parser.add_argument('checkpoint_b', help='checkpoint of B, likewise')
    parser.add_argument(
        '--layers', nargs='*', default=[], metavar='NAME',
        help='modules to compare, NAME or NAME_IN_A=NAME_IN_B (default: none; then the names are printed)',
    )  # fmt: skip
    parser.add_argument(
        '--pool', choices=('positions', 'mean'), default='positions',
        help='all positions are samples, or their mean (default: positions)',
    )  # fmt: skip
    parser.add_argument('--max-batches', type=int, help='batches to look at (default: all)')
    parser.add_argument('--penalties', type=float, nargs='*', default=[0.01, 0.03, 0.1],
                        help='of the sparse map from A to B (default: 0.01 0.03 0.1)')  # fmt: skip
    parser.add_argument('--groups', type=int, default=0, help='spectral groups of the units of both (default: 0, none)')
    parser.add_argument(
        '--mutual-information', action='store_true', help='match by mutual information, too, on 2,048 rows'
    )
    parser.add_argument('--permutations', type=int, default=100, help='of the null of CKA (default: 100)')
    parser.add_argument('--pairs', type=int, default=8, help='matched pairs that are drawn (default: 8)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare_networks'),
                        help='folder to write into (default: work_dirs/compare_networks)')  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of both configs (default: none)',
    )  # fmt: skip
    return parser.parse_args(arguments)


def build(config, checkpoint):
    """Return the model of a config with its weights."""
    from mmengine.registry import MODELS, init_default_scope

    from clusterplug.checkpoints import load_checkpoint_into

    check_packages(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = MODELS.build(config.model)
    if checkpoint == 'none':
        model.init_weights()
    else:
        load_checkpoint_into(model, checkpoint)
    return model.eval()


def table(rows):
    """Lines of a markdown table of summaries."""
    lines = ['| layer | units | dead | positions | semi | bipartite | same choice | identity | CKA | null 95 % | p |',
             '|---|---|---|---|---|---|---|---|---|---|---|']  # fmt: skip
    for row in rows:
        lines.append(
            f'| {row.layer} | {row.units_a} / {row.units_b} | {row.dead_a} / {row.dead_b} | {row.positions} | '
            f'{row.semi:.3f} | {row.bipartite:.3f} | {row.same_choice:.3f} | {row.identity:.3f} | {row.cka:.3f} | '
            f'{row.null:.3f} | {row.p_value:.3f} |'
        )
    return lines


def activation(output, unit):
    """One unit over the first sample of a batch, as something to draw; None where there are no positions."""
    values = output.rows[:, unit].numpy()
    if output.positions is not None:
        first = (output.positions[:, 0] == 0).numpy()
        return output.positions.numpy()[first][:, 1:3], values[first]
    size = values.size // output.grid[0]
    if len(output.grid) == 2:  # tokens, perhaps behind a class token
        side = int(size**0.5)
        return values[:size][size - side * side :].reshape(side, side) if side > 1 else None
    return values[:size].reshape(output.grid[1:]) if len(output.grid) == 3 else None


def details(matching, name, args):
    """What the options ask for about one layer: partners, sparse maps, groups, mutual information."""
    partners = {method: matching.match(name, method).tolist() for method in ('bipartite', 'semi')}
    found = {'partners': partners, 'sparse': []}
    moments = matching.moments[name]
    corr, (_, live) = moments.correlations(), moments.live()
    width = moments.widths[0]
    for penalty in args.penalties:
        weights = matching.sparse_mapping(name, penalty)
        left = 1 - 2 * (weights * corr[:width, width:]).sum(0) + (weights * (corr[:width, :width] @ weights)).sum(0)
        found['sparse'].append({
            'penalty': penalty, 'units': float((weights != 0).double().sum(0)[live].mean()),
            'error': float(left[live].mean()),
        })  # fmt: skip
    if args.groups:
        found['groups'] = [each.tolist() for each in matching.groups(name, args.groups)]
    if args.mutual_information:
        from clusterplug.functional import match_units

        partners['mutual_information'] = match_units(matching.mutual_information(name), 'semi').tolist()
    return found


def draw(matching, name, number, args):
    """Write the two pictures of a layer."""
    from clusterplug.visualization import save_activation_pairs, save_unit_correlations

    corr, partners = matching.correlation(name).cpu(), matching.match(name).cpu()
    save_unit_correlations(args.out / f'correlation_{number}.png', corr.numpy(), partners.numpy(), name)
    values = corr.gather(1, partners.clamp(min=0)[:, None])[:, 0].masked_fill(partners < 0, -2)
    pairs = []
    for unit in values.argsort(descending=True)[: args.pairs].tolist():
        both = [activation(side, each) for side, each in zip(matching.examples[name], (unit, int(partners[unit])))]
        if all(each is not None for each in both):
            pairs.append((f'{unit} - {int(partners[unit])} ({values[unit]:.2f})', *both))
    if pairs:
        save_activation_pairs(args.out / f'maps_{number}.png', pairs)


def compare(args, configs):
    """Match the units and write what was found; return the summaries and all details."""
    from clusterplug.analysis import UnitMatching
    from clusterplug.core.files import write_json
    from clusterplug.visualization import save_match_curves

    models = [build(*each) for each in zip(configs, (args.checkpoint_a, args.checkpoint_b))]
    if not args.layers:
        print('\n'.join(name for name, _ in models[0].named_modules() if name))
        raise ValueError('name the layers to compare with --layers; those of A are above')
    from mmengine.runner import Runner

    loader = Runner.build_dataloader(configs[0].val_dataloader)
    layers = [tuple(each.split('=', 1)) if '=' in each else each for each in args.layers]
    matching = UnitMatching(*models, layers, pool=args.pool).fit(loader, args.max_batches)
    rows = matching.summary(args.permutations)
    found = [row._asdict() | details(matching, row.layer, args) for row in rows]
    write_json(args.out / 'units.json', found)
    curves = {name: tuple(matching.curve(name, method).cpu().numpy() for method in ('bipartite', 'semi'))
              for name in matching.pairs}  # fmt: skip
    save_match_curves(args.out / 'curves.png', curves)
    for number, name in enumerate(matching.pairs):
        draw(matching, name, number, args)
    return rows, found


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    for path in (args.checkpoint_a, args.checkpoint_b):
        if path != 'none' and not Path(path).is_file():
            sys.exit(f'compare_networks: a checkpoint must be a file or none, got {path}, which does not exist')
    from clusterplug.cli import data_folders, load_config

    try:
        configs = [load_config(each, args.cfg_options, str(args.out)) for each in (args.config_a, args.config_b)]
        if configs[0].get('val_dataloader') is None:
            raise ValueError(f'{args.config_a} has no val_dataloader, whose samples both networks see')
        sources = [each for each in (args.checkpoint_a, args.checkpoint_b) if each != 'none']
        sources += [folder for config in configs for folder in data_folders(config)]
        with output_folder(args.out, 'compare_networks', files=FILES, sources=sources, settings=settings_of(args)):
            rows, found = compare(args, configs)
    except (OSError, ValueError, UnpicklingError) as error:
        sys.exit(f'compare_networks: {error}')
    print('\n'.join(table(rows)))
    for row in found:
        for each in row['sparse']:
            print(f'{row["layer"]}: penalty {each["penalty"]:g}: {each["units"]:.1f} units of A for one of B, '
                  f'squared error {each["error"]:.3f}')  # fmt: skip
    print(f'units.json and pictures in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'compare_networks'))
