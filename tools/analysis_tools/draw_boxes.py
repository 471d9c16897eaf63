#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw what a KITTI detector finds, from above and in the camera image, one PNG a frame, without a display.

python tools/analysis_tools/draw_boxes.py CONFIG CHECKPOINT --out pictures [--frames 0 1] [--score-thr 0.3]
python tools/analysis_tools/draw_boxes.py CONFIG                   # the ground truth alone
"""

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.outputs import output_folder, refuse_source_targets, settings_of
from clusterplug.user_errors import run_tool

TRUTH = (60, 220, 60)
COLORS = [(255, 90, 90), (90, 170, 255), (255, 190, 40), (220, 110, 255), (80, 230, 230)]


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a detector on KITTI: a path, or package::path')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; without it the ground truth is drawn alone')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/boxes'), help='folder for the pictures (default: %(default)s)'
    )
    parser.add_argument('--frames', type=int, nargs='+', help='numbers of frames of the validation set (default: all)')
    parser.add_argument(
        '--score-thr', '--score', type=float, default=0.3, help='lowest score of a box, 0 to 1 (default: %(default)s)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Write one picture for each frame; returns the exit code."""
    args = parse_arguments()
    from mmengine.dataset import pseudo_collate

    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner, data_folders, load_config

    if args.checkpoint and not Path(args.checkpoint).is_file():
        sys.exit(f'draw_boxes: CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    config = load_config(args.config, args.cfg_options, str(args.out / 'log'))
    refuse_source_targets(data_folders(config), [args.out])  # before the log is begun
    runner = build_runner(config)
    dataset = runner.build_dataloader(runner.cfg.val_dataloader).dataset
    frames = range(len(dataset)) if args.frames is None else args.frames
    if frames and not 0 <= min(frames) <= max(frames) < len(dataset):
        sys.exit(f'draw_boxes: --frames must be from 0 to {len(dataset) - 1}, got {args.frames}')
    model = runner.model.eval()
    if args.checkpoint:
        try:
            load_checkpoint_into(model, args.checkpoint)
        except (OSError, ValueError, UnpicklingError) as error:
            sys.exit(f'draw_boxes: {error}')
    names, sources = [_target(dataset, n, args).name for n in frames], _sources(dataset, frames, args)
    options = dict(settings=settings_of(args), keep=True)
    with output_folder(args.out, 'draw_boxes', files=names, sources=sources, **options):
        for number in frames:
            data, found = dataset[number], None
            if args.checkpoint:
                import torch

                with torch.no_grad():
                    found = model.test_step(pseudo_collate([data]))[0].pred_instances_3d.to('cpu')
                found = found[found.scores_3d >= args.score_thr]
            path = _target(dataset, number, args)
            draw(path, dataset, number, data['inputs']['points'].numpy(), found)
            print(path)
    return 0


def _sources(dataset, frames, args) -> set[Path]:
    paths = [dataset.get_data_info(number)['lidar_points']['lidar_path'] for number in frames]
    folders = {Path(path).parent for path in paths}
    images = Path(dataset.data_root) / 'training/image_2'
    return folders | {images, Path(args.config)} | ({Path(args.checkpoint)} if args.checkpoint else set())


def _target(dataset, number: int, args) -> Path:
    return args.out / f'{Path(dataset.get_data_info(number)["lidar_points"]["lidar_path"]).stem}.png'


def draw(path: Path, dataset, number: int, points, found) -> None:
    """The camera image above, the view from above below, with a legend; written whole or not at all."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread
    from matplotlib.patches import Patch

    from clusterplug.core.files import whole_file
    from clusterplug.visualization.boxes import BoxGroup, boxes_from_above, boxes_in_image

    info = dataset.get_data_info(number)
    truth = info['eval_ann_info']['gt_bboxes_3d'].tensor.numpy()
    groups, legend = [BoxGroup(truth, TRUTH)], [Patch(color=np.array(TRUTH) / 255, label='ground truth')]
    if found is not None:
        for label, name in enumerate(dataset.metainfo['classes']):
            color = COLORS[label % len(COLORS)]
            chosen = found.labels_3d == label
            groups.append(BoxGroup(found.bboxes_3d.tensor[chosen].numpy(), color))
            legend.append(Patch(color=np.array(color) / 255, label=f'{name}: {int(chosen.sum())} found'))
    camera = info['images']['CAM2']
    file = Path(dataset.data_root) / 'training/image_2' / Path(camera['img_path']).name
    reach = float(np.ceil(max(np.abs(points[:, :2]).max(), 1.0))) if len(points) else 40.0
    above = boxes_from_above(points, groups, (0, -reach / 2, reach, reach / 2))
    figure = Figure(figsize=(12, 12), dpi=90)
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 1, height_ratios=[1, 2.2])
    if file.is_file():
        image = (imread(str(file))[..., :3] * 255).astype(np.uint8)
        rows[0].imshow(boxes_in_image(image, groups, np.array(camera['lidar2img'])))
    else:
        rows[0].text(0.5, 0.5, f'no image {file}', ha='center')
    rows[0].set_axis_off()
    rows[1].imshow(above, extent=(reach / 2, -reach / 2, 0, reach))
    rows[1].set_xlabel('y in m')
    rows[1].set_ylabel('x in m')
    figure.suptitle(path.stem)
    figure.legend(handles=legend, loc='lower center', ncols=len(legend), frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    with whole_file(path, 'wb') as out:
        figure.savefig(out, format='png')


if __name__ == '__main__':
    sys.exit(run_tool(main, 'draw_boxes'))
