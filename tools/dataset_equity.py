#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Find how common the appearance of each training sample is, for weights in the loss.

    python tools/dataset_equity.py CONFIG --out work_dirs/equity --checkpoint model.pth
    python tools/dataset_equity.py CONFIG --out work_dirs/equity --embedder resnet18 --pretrained
    python tools/dataset_equity.py CONFIG --out work_dirs/equity --cluster knn --reducer none

Samples of the training split of CONFIG alone are embedded: by the model of CONFIG (its feature map or voxels, pooled,
so that no camera is needed), by a timm network or by a registered backbone given as JSON (camera images). OUT gets
features/ (the same command goes on after a kill), likelihood.json (for clusterplug.WithSampleWeights, SampleValues and
LikelihoodSampler) and pictures: scatter.png, likelihood.png, rarest.png, commonest.png.
"""

import argparse
import copy
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.cli import data_folders, load_config
from clusterplug.core.files import load_arrays, save_arrays, write_json
from clusterplug.core.outputs import difference, fingerprint, output_folder, read_marker, settings_of
from clusterplug.datasets.transforms import sample_id
from clusterplug.estimators import SampleLikelihood
from clusterplug.registry import DATASETS, MODELS
from clusterplug.user_errors import run_tool

_PART = 32  # samples of a part of the features: what an interrupted run embeds again at most
FILES = ('likelihood.json', 'scatter.png', 'likelihood.png', 'rarest.png', 'commonest.png')
_TAPS = ('neck', 'pts_neck', 'backbone', 'pts_backbone', 'middle_encoder')


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a detector or segmentor of mmdet3d')
    parser.add_argument('--out', required=True, help='folder for features, likelihoods and pictures')
    parser.add_argument(
        '--embedder', default='model',
        help='model: that of the config; a name of timm; or a registered backbone as JSON (default: model)',
    )  # fmt: skip
    parser.add_argument('--checkpoint', help='weights of the model or backbone (default: none, random weights)')
    parser.add_argument('--pretrained', action='store_true', help='let timm fetch its weights')
    parser.add_argument('--layer', help='layer of the model whose output is pooled (default: its neck or backbone)')
    parser.add_argument(
        '--size', type=int, default=384, help='side of the images for timm and backbones (default: 384)'
    )
    parser.add_argument('--image-root', help='folder of the images, where the config does not name it (default: none)')
    parser.add_argument('--cluster', default='hdbscan', help='hdbscan, dbscan, kmeans or knn (default: hdbscan)')
    parser.add_argument('--reducer', default='pca', help='pca, tsne or none (default: pca)')
    parser.add_argument('--n-components', type=int, help='dimensions after it (default: 50, t-SNE 3)')
    parser.add_argument('--n-clusters', type=int, default=50, help='of kmeans (default: 50)')
    parser.add_argument('--n-neighbors', type=int, default=10, help='of knn (default: 10)')
    parser.add_argument('--eps', type=float, default=1.0, help='radius of dbscan (default: 1.0)')
    parser.add_argument('--min-samples', type=int, default=10, help='of dbscan and hdbscan (default: 10)')
    parser.add_argument('--perplexity', type=float, default=40.0, help='of t-SNE (default: 40.0)')
    parser.add_argument('--noise', default='singleton', help='singleton or cluster (default: singleton)')
    parser.add_argument('--standardize', action='store_true', help='scale every feature to variance 1 first')
    parser.add_argument(
        '--key', default='lidar_path', help='id: lidar_path, img_path, token or sample_idx (default: lidar_path)'
    )
    parser.add_argument('--eta', type=float, default=0.5, help='of the weights shown (default: 0.5)')
    parser.add_argument('--gamma', type=float, default=5.0, help='of the weights shown (default: 5.0)')
    parser.add_argument('--seed', type=int, default=33, help='of t-SNE, kmeans and random weights (default: 33)')
    parser.add_argument('--device', default='cpu', help='device of the embedder (default: cpu)')
    parser.add_argument('--no-pictures', action='store_true', help='write likelihood.json alone')
    return parser.parse_args(arguments)


def training_set(config):
    """The training split of the config with its test pipeline: no augmentation, and no sample left out or repeated."""
    split = copy.deepcopy(config.train_dataloader.dataset)
    while 'dataset' in split and 'ann_file' not in split:  # RepeatDataset, CBGSDataset
        split = split.dataset
    test = config.get('test_dataloader') or config.val_dataloader
    other = test.dataset
    while 'dataset' in other and 'ann_file' not in other:
        other = other.dataset
    split.update(pipeline=other.pipeline, test_mode=True)
    return DATASETS.build(split)


def pooled(output) -> torch.Tensor:
    """One vector of all that a layer gave for one sample: means over positions, voxels or points, level by level."""
    output = getattr(output, 'features', output)
    if isinstance(output, dict):
        output = [output[name] for name in sorted(output)]
    if isinstance(output, list | tuple):
        found = [pooled(each) for each in output]
        return torch.cat([each for each in found if each.numel()])
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return torch.empty(0)
    if output.dim() > 2:
        output = output.flatten(2).mean(2)
    return output.mean(0).float().cpu()


class ModelEmbedder:
    """The model of the config: the pooled output of one of its layers."""

    def __init__(self, config, layer, checkpoint, device):
        self.model = MODELS.build(config.model).to(device).eval()
        if checkpoint:
            from mmengine.runner import load_checkpoint

            load_checkpoint(self.model, checkpoint, map_location='cpu')
        modules = dict(self.model.named_modules())
        layer = layer or next((name for name in _TAPS if name in modules), None)
        if layer not in modules:
            raise ValueError(
                f'--layer must be one of the model, such as {", ".join(list(modules)[1:6])}, got {layer!r}'
            )
        modules[layer].register_forward_hook(self._keep)
        self.name, self.found = f'model:{layer}', None

    def _keep(self, module, args, output):
        self.found = pooled(output)

    def __call__(self, dataset, index, info):
        from mmengine.dataset import pseudo_collate

        data = self.model.data_preprocessor(pseudo_collate([_one(dataset[index])]), False)
        self.found = None
        self.model(**data, mode='tensor')
        if self.found is None or not self.found.numel():
            raise ValueError(f'{self.name} gave nothing to pool; choose another --layer')
        return self.found


class ImageEmbedder:
    """A network over the camera image of a sample."""

    def __init__(self, name, checkpoint, pretrained, size, device, root):
        self.root = root
        if name.startswith('{'):
            self.network = MODELS.build(json.loads(name))
        else:
            try:
                import timm
            except ImportError:
                raise ModuleNotFoundError(
                    "--embedder needs timm; install it with: pip install 'clusterplug[vit]'"
                ) from None
            if name not in timm.list_models() and name.partition('.')[0] not in timm.list_models():
                raise ValueError(f"--embedder must be 'model', a model of timm or JSON, got {name!r}")
            self.network = timm.create_model(name, pretrained=pretrained, num_classes=0)
        if checkpoint:
            from mmengine.runner import load_checkpoint

            load_checkpoint(self.network, checkpoint, map_location='cpu')
        self.network.to(device).eval()
        known = getattr(self.network, 'pretrained_cfg', None) or {}
        self.mean = torch.tensor(known.get('mean', (0.485, 0.456, 0.406)), device=device).view(3, 1, 1)
        self.std = torch.tensor(known.get('std', (0.229, 0.224, 0.225)), device=device).view(3, 1, 1)
        fixed = known.get('fixed_input_size')
        self.size, self.name = known['input_size'][-1] if fixed else size, name

    def __call__(self, dataset, index, info):
        from PIL import Image

        picture = Image.open(image_path(dataset, info, self.root)).convert('RGB')
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(picture)).to(self.mean.device).permute(2, 0, 1) / 255
        found = self.network(((x - self.mean) / self.std)[None])
        return pooled(found[-1] if isinstance(found, list | tuple) else found)


def image_path(dataset, info, root: str | None = None) -> str:
    """The camera image of a sample; raise where it has none on disk.

    Info files name it with or without its folder: ``--image-root`` and the folders of the data set are looked through
    (KITTI's files name an image ``000008.png``, its folder is ``image_2`` next to that of the scans).
    """
    cameras = [each for each in (info.get('images') or {}).values() if isinstance(each, dict)]
    named = [each for each in (info.get('img_path'), *(camera.get('img_path') for camera in cameras)) if each]
    roots = [root] if root else []
    if not root and getattr(dataset, 'data_root', None):
        roots.append(dataset.data_root)
    scan = (info.get('lidar_points') or {}).get('lidar_path')
    if not root and scan:
        roots += [str(Path(scan).parents[1] / camera) for camera in ('image_2', 'image_02/data')]
    for path in named:
        for candidate in (path, *(str(Path(each) / name) for each in roots for name in (path, Path(path).name))):
            if Path(candidate).is_file():
                return candidate
    raise ValueError(
        f'a sample has no camera image on disk ({", ".join(named) or "none is named"}); pass --image-root, or take '
        f'--embedder model, which needs none'
    )


def _one(packed):
    """A packed sample; the first one of test-time augmentation."""
    inputs, samples = packed['inputs'], packed['data_samples']
    if isinstance(samples, list):
        return dict(inputs={name: value[0] for name, value in inputs.items()}, data_samples=samples[0])
    return packed


def files_of(info) -> list:
    """Size and time of the files of a sample: what tells a scan or an image that was replaced."""
    cameras = [each for each in (info.get('images') or {}).values() if isinstance(each, dict)]
    named = [(info.get('lidar_points') or {}).get('lidar_path'), info.get('img_path')]
    named += [camera.get('img_path') for camera in cameras]
    return [fingerprint(each) for each in named if each and Path(each).is_file()]


def embed_all(dataset, embedder, ids, folder: Path, settings: dict) -> np.ndarray:
    """Features (N, D); parts that an earlier run of the same settings and files left are not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / 'settings.json'
    if marker.exists():
        differs = difference({**(read_marker(marker) or {}), 'samples': 0}, {**settings, 'samples': 0})
        if differs or read_marker(marker)['samples'] != settings['samples']:
            raise ValueError(
                f'{folder} holds features of other settings ({differs or "other samples"}); choose another --out'
            )
    write_json(marker, settings)
    parts = []
    for start in range(0, len(ids), _PART):
        path = folder / f'part_{start // _PART:06}.npz'
        rows = ids[start : start + _PART]
        infos = [dataset.get_data_info(start + i) for i in range(len(rows))]
        about = dict(ids=[str(each) for each in rows], files=[files_of(info) for info in infos])
        found = part_of(path, about)
        if found is None:
            with torch.no_grad():
                vectors = [embedder(dataset, start + i, info) for i, info in enumerate(infos)]
            found = torch.stack(vectors).numpy()
            save_arrays(path, dict(features=found), about)
            print(f'{start + len(rows)} of {len(ids)} samples embedded', file=sys.stderr, flush=True)
        parts.append(found)
    return np.concatenate(parts)


def part_of(path: Path, about: dict) -> np.ndarray | None:
    """Features of a part that was made of the same files; None if it is missing, damaged or of others."""
    try:
        arrays, header = load_arrays(path)
    except (OSError, ValueError):
        return None
    return arrays.get('features') if header == about else None


def picture_of(dataset, info, index, root):
    """A function that gives the camera image of a sample, or its points from above."""

    def draw():
        try:
            from PIL import Image

            return np.array(Image.open(image_path(dataset, info, root)).convert('RGB'))
        except (ValueError, OSError):
            points = _one(dataset[index])['inputs']['points']
            points = np.asarray(getattr(points, 'tensor', points))[:, :3]
            canvas = np.full((300, 300, 3), 24, np.uint8)
            cells = np.round(150 + points[:, :2] * (150 / 50)).astype(int)
            inside = ((cells >= 0) & (cells < 300)).all(1)
            shade = np.clip(110 + 40 * points[inside, 2], 70, 255).astype(np.uint8)
            canvas[299 - cells[inside, 0], 299 - cells[inside, 1]] = shade[:, None]
            return canvas

    return draw


def draw_pictures(out: Path, dataset, ids, found: SampleLikelihood, weights: np.ndarray, root: str | None) -> None:
    from clusterplug.visualization.likelihood_figures import (
        save_contact_sheet,
        save_likelihood_bars,
        save_likelihood_scatter,
    )

    save_likelihood_scatter(out / 'scatter.png', found.embedding_, found.likelihood_)
    save_likelihood_bars(out / 'likelihood.png', found.likelihood_, weights)
    order = np.argsort(found.likelihood_, kind='stable')
    for name, chosen in (('rarest', order[:12]), ('commonest', order[::-1][:12])):
        infos = [dataset.get_data_info(int(index)) for index in chosen]
        save_contact_sheet(
            out / f'{name}.png',
            [picture_of(dataset, info, int(index), root) for info, index in zip(infos, chosen)],
            [f'{ids[index]}  p = {found.likelihood_[index]:.3f}' for index in chosen],
        )


def run(args) -> str:
    config = load_config(args.config)
    sources = [*data_folders(config), *([args.checkpoint] if args.checkpoint else [])]
    with output_folder(args.out, 'dataset_equity', files=FILES, sources=sources, settings=settings_of(args)):
        return weigh(args, config)


def weigh(args, config) -> str:
    """Embed the samples, find their likelihoods and write them."""
    from mmengine.registry import init_default_scope

    init_default_scope(config.get('default_scope', 'mmdet3d'))
    torch.manual_seed(args.seed)
    dataset = training_set(config)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    ids = [sample_id(info, args.key) for info in infos]
    if len(set(ids)) != len(ids):
        raise ValueError(f'--key {args.key} must give every sample an id of its own; choose another')
    if args.embedder == 'model':
        embedder = ModelEmbedder(config, args.layer, args.checkpoint, args.device)
    else:
        embedder = ImageEmbedder(
            args.embedder, args.checkpoint, args.pretrained, args.size, args.device, args.image_root
        )
    if not args.checkpoint and not args.pretrained:
        print('the weights of the embedder are random: pass --checkpoint or --pretrained', file=sys.stderr)
    settings = dict(
        embedder=embedder.name, checkpoint=args.checkpoint, pretrained=args.pretrained, size=args.size, seed=args.seed,
        weights=fingerprint(args.checkpoint) if args.checkpoint else None, image_root=args.image_root,
        config=hashlib.sha256(repr([config.model, dataset.pipeline]).encode()).hexdigest(),
        samples=[str(each) for each in ids],
    )  # fmt: skip
    out = Path(args.out)
    x = embed_all(dataset, embedder, ids, out / 'features', settings).astype(np.float64)
    if args.standardize:
        spread = x.std(0)
        x = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    names = (
        'cluster',
        'reducer',
        'n_components',
        'n_clusters',
        'n_neighbors',
        'eps',
        'min_samples',
        'perplexity',
        'noise',
    )
    chosen = {name: getattr(args, name) for name in names}
    found = SampleLikelihood(**chosen, random_state=args.seed).fit(x, ids=ids)
    weights = found.weights(args.eta, args.gamma)
    about = {**chosen, 'embedder': embedder.name, 'checkpoint': args.checkpoint, 'config': args.config}
    found.save(out / 'likelihood.json', key=args.key, about=about)
    if not args.no_pictures:
        draw_pictures(out, dataset, ids, found, weights, args.image_root)
    number = len(set(found.labels_.tolist()) - {-1})
    groups = f'{number} clusters, {(found.labels_ < 0).mean():.0%} outside of them'
    groups = f'density by {args.n_neighbors} neighbors' if args.cluster == 'knn' else groups
    return (
        f'{len(ids)} samples, {groups}; likelihood '
        f'{found.likelihood_.min():.3f} to {found.likelihood_.max():.3f}, mean weight {weights.mean():.3f} with eta '
        f'{args.eta:g}, gamma {args.gamma:g}; {out / "likelihood.json"}'
    )


def main(arguments=None):
    args = parse_arguments(arguments)
    try:
        print(run(args))
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'dataset_equity'))
