#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Turn a checkpoint of guikunchen/FEC into weights of clusterplug's FEC: fec.py SOURCE --out FILE [--backbone]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.command_line import add_out, parse, tool_parser
from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument('source', type=Path, help="the authors' checkpoint, a classifier or a backbone")
    add_out(parser, 'file to write')
    parser.add_argument(
        '--backbone', action='store_true', help="leave a classifier's head out, for detection and segmentation"
    )
    return parse(parser, arguments)


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    import torch

    from clusterplug.backbones import FEC, list_models, load_fec
    from clusterplug.backbones.fec_checkpoint import backbone_weights, read_weights
    from clusterplug.core.files import whole_file

    try:
        check_output_file(args.out, [args.source])
        weights = read_weights(args.source)
        head = weights.get('head.weight')
        classes = len(head) if head is not None and head.ndim else 0
        if args.backbone or not classes:
            weights, classes = backbone_weights(weights), 0
    except (OSError, ValueError) as error:
        sys.exit(f'fec: {error}')
    for name in list_models():
        with torch.device('meta'):
            model = FEC(name.removeprefix('fec_'), num_classes=classes)
        if {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in weights.items()}:
            break
    else:
        sys.exit(
            f'fec: SOURCE must hold all weights of {", ".join(list_models())}, got another size or weights missing'
        )
    model = model.to_empty(device='cpu')
    load_fec(model, weights)
    try:
        with whole_file(args.out, 'wb') as file:
            torch.save(dict(meta=dict(arch=name, num_classes=classes), state_dict=dict(weights)), file)
    except OSError as error:
        sys.exit(f'fec: {error}')
    head = f'head of {classes} classes' if classes else 'no head'
    print(f'{args.out}: {name}, {head}, {sum(value.numel() for value in weights.values()):,} numbers')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'fec'))
