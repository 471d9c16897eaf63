#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw what FEC clusters in an image: view_fec.py IMAGE [CKPT] [--arch small] [--groups 3]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.outputs import output_folder, refuse_source_targets, settings_of
from clusterplug.user_errors import run_tool

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', type=Path, help='picture of any size and kind that PIL reads, or the word demo')
    parser.add_argument('checkpoint', nargs='?', type=Path, help="the authors' or ours; without it, random weights")
    parser.add_argument('--arch', default='small', help='small, base or large (default: small)')
    parser.add_argument('--size', type=int, default=224, help='pixels of the longer side (default: 224)')
    parser.add_argument('--groups', type=int, default=3, help='groups of the last clusters (default: 3)')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/fec_views'), help='folder for the files (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of random weights (default: 0)')
    return parser.parse_args(arguments)


def read_image(path: Path, size: int):
    """(H, W, 3) uint8 RGB with ``size`` pixels on the longer side; gray pictures become gray RGB."""
    import numpy as np
    from PIL import Image

    if str(path) == 'demo':
        from clusterplug.visualization.demo_picture import demo_picture

        return demo_picture(size)
    picture = Image.open(path).convert('RGB')
    scale = size / max(picture.size)
    shape = [max(1, round(side * scale)) for side in picture.size]
    return np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    page, panels = args.out / f'{args.image.stem}.html', args.out / f'{args.image.stem}.png'
    try:
        sources = [each for each in (args.image, args.checkpoint) if each is not None and str(each) != 'demo']
        refuse_source_targets(sources, [page, panels])
        names, settings = [page.name, panels.name], settings_of(args)
        with output_folder(args.out, 'view_fec', files=names, sources=sources, settings=settings, keep=True):
            draw(args, page, panels)
    except (OSError, ValueError) as error:
        sys.exit(f'view_fec: {error}')
    print(page, panels, sep='\n')
    return 0


def draw(args, page: Path, panels: Path) -> None:
    import torch

    from clusterplug.backbones import FEC, load_fec
    from clusterplug.visualization.cluster_page import save_cluster_page, save_cluster_panels
    from clusterplug.visualization.cluster_views import cluster_views

    torch.manual_seed(args.seed)
    image = read_image(args.image, args.size)
    model = FEC(args.arch).eval()
    if args.checkpoint is not None:
        load_fec(model, args.checkpoint)
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    views = cluster_views(model, (pixels - mean) / std, args.groups)
    weights = args.checkpoint.name if args.checkpoint else 'random weights'
    save_cluster_page(page, image, views, title=f'{args.image.name}: FEC-{args.arch}, {weights}')
    chosen = [view for view in views if 'block' not in view.name or view.name.endswith('block 1, head 1')]
    save_cluster_panels(panels, image, chosen)


if __name__ == '__main__':
    sys.exit(run_tool(main, 'view_fec'))
