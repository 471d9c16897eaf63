#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw which classes of a Grassmann head are easily confused: view_confusability.py CHECKPOINT --subspace-dim 8."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of a model with a GrassmannHead')
    parser.add_argument('--subspace-dim', type=int, required=True, help='dimensions of each class (required)')
    parser.add_argument(
        '--key', help='name of the bases in the state dict (default: the only one that ends in fc.weight)'
    )
    parser.add_argument('--names', nargs='*', default=[], help='names of the classes (default: their numbers)')
    parser.add_argument(
        '--out', type=Path, default=Path('confusability.png'), help='PNG to write (default: %(default)s)'
    )
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    from clusterplug.checkpoints import read_checkpoint
    from clusterplug.functional import class_overlap, orthonormalize_bases
    from clusterplug.visualization import save_class_overlap

    try:
        check_output_file(args.out, [args.checkpoint])
        content = read_checkpoint(args.checkpoint)
        state = content.get('state_dict', content)
        keys = [args.key] if args.key else [name for name in state if name.endswith('fc.weight')]
        if len(keys) != 1 or keys[0] not in state:
            raise ValueError(f'--key must name the bases, got {", ".join(keys) or "none that end in fc.weight"}')
        weight = state[keys[0]].float()
        if args.subspace_dim < 1 or weight.shape[0] % args.subspace_dim:
            raise ValueError(
                f'--subspace-dim must divide the {weight.shape[0]} rows of {keys[0]}, got {args.subspace_dim}'
            )
        overlap = class_overlap(orthonormalize_bases(weight.unflatten(0, (-1, args.subspace_dim)).mT)).numpy()
        save_class_overlap(args.out, overlap, args.names)
    except (OSError, ValueError) as error:
        sys.exit(f'view_confusability: {error}')
    names = args.names or [str(k) for k in range(len(overlap))]
    pairs = sorted(((overlap[i, j], names[i], names[j]) for i in range(len(overlap)) for j in range(i)), reverse=True)
    for value, one, other in pairs[:10]:
        print(f'{value:.3f}  {one} - {other}')
    print(args.out)
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'view_confusability'))
