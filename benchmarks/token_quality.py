# SPDX-License-Identifier: Apache-2.0
"""Token reduction on trained weights and real pictures: what is kept of features and of a saliency mask, at what speed.

    OMP_NUM_THREADS=1 CLUSTERPLUG_DATA=... python benchmarks/token_quality.py methods --size 518 --batch 1
    OMP_NUM_THREADS=1 CLUSTERPLUG_DATA=... python benchmarks/token_quality.py variants --images 16
    CLUSTERPLUG_DATA=... python benchmarks/token_quality.py picture --image photo.jpg --out tokens.jpg

DINOv2 ViT-S/14 with a dense saliency head (``vit`` of the data folder), half of the pictures from KITTI and half from
videos (``--set mixed``), or of one kind (``kitti``, ``frames``, ``clips``), the middle square of each. Quality is
agreement with the same network on all tokens: cosine of the patch features, intersection over union of the saliency
masks (> 0.5, all pictures together), share of equal pixels. Speed is process time of the transformer on one CPU
thread, every method in turn on the same pictures; fused attention is on everywhere. ``--speedup`` is the FLOP ratio
that all methods are set to.
"""

import argparse
import importlib.util
import io
import os
import statistics
import time
import zipfile
from pathlib import Path
from sys import path

path.insert(0, str(Path(__file__).resolve().parent))
path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from _timing import header, published
from _token_variants import FeatureExpedit
from PIL import Image

from clusterplug import patch
from clusterplug.functional import cluster_tokens, token_neighbors, token_spread
from clusterplug.visualization.token_figures import paint_token_clusters, save_token_panels, token_colors

AUTHORS = dict(residual=False, search=None, norm='l2')


def load(data: Path):
    """Return the transformer and its saliency head."""
    spec = importlib.util.spec_from_file_location('load_dinov2s_focus', data / 'vit' / 'load_dinov2s_focus.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def transformer():
    """Return the transformer alone; ``token_pareto.py benchmarks.token_quality:transformer`` takes it."""
    return load(Path(os.environ['CLUSTERPLUG_DATA']))[0]


def square(image: Image.Image, size: int) -> torch.Tensor:
    """Return the middle square (3, size, size), normalized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(np.array(image)).float() / 255 - mean) / std).permute(2, 0, 1)


def clips(data: Path, number: int, size: int) -> torch.Tensor:
    """Return (N, 3, size, size), frame 20 of each of the clips."""
    from clusterplug.datasets.video.decoding import open_video

    files = sorted((data / 'video' / 'clips').rglob('*.mp4'))[:number]
    videos = [open_video(file) for file in files]
    frames = [video.frames([min(20, video.length - 1)])[0] for video in videos]
    return torch.stack([square(Image.fromarray(np.asarray(frame)), size) for frame in frames])


def pictures(data: Path, number: int, size: int, kind: str = 'mixed') -> torch.Tensor:
    """Return (N, 3, size, size): first KITTI frames, then one frame each of videos spread over the archive."""
    if kind == 'clips':
        return clips(data, number, size)
    share = {'mixed': number // 2, 'kitti': number, 'frames': 0}[kind]
    kitti = sorted((data / 'kitti' / 'training' / 'image_2').glob('*.png'))[:share]
    images = [square(Image.open(file).convert('RGB'), size) for file in kitti]
    if kind == 'kitti':
        return torch.stack(images)
    with zipfile.ZipFile(data / 'video' / 'msrvtt_1kA_frame_pairs.zip') as archive:
        videos = {name.rsplit('/', 1)[0]: name for name in sorted(archive.namelist()) if name.endswith('.jpg')}
        names, rest = list(videos.values()), number - len(images)
        for name in names[:: max(1, len(names) // rest)][:rest]:
            pair = Image.open(io.BytesIO(archive.read(name))).convert('RGB')
            images.append(square(pair.crop((0, 0, 320, 240)), size))
    return torch.stack(images)


def ideal_gain(vit, start: int, cells: int, side: int) -> float:
    """Return the FLOP ratio of the transformer's blocks."""
    depth, width = len(vit.blocks), vit.pos_embed.shape[-1]

    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    full, short = block(side**2 + 1), block(cells**2 + 1)
    return depth * full / (start * full + (depth - start) * short)


def tokens_per_block(vit, speedup: float, side: int) -> int:
    """Return how many tokens every block has to merge for a FLOP ratio of the blocks."""
    depth, width, tokens = len(vit.blocks), vit.pos_embed.shape[-1], side**2 + 1

    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    number = 0
    while depth * block(tokens) < speedup * sum(block(tokens - number * index) for index in range(depth)):
        number += 1
    return number


class Entry:
    """One line of the table: how to patch, and what came out."""

    def __init__(self, name: str, method: str | type | None = None, **options):
        self.name, self.method, self.options = name, method, options
        self.times, self.cosines, self.both, self.either, self.equal = [], [], 0, 0, []

    def run(self, vit, decoder, batch, start, cells):
        """Return features and masks of a batch; note the time."""
        if self.method is not None:
            name = self.method
            if not isinstance(name, str):
                patch.register_method('variant', name)
                name = 'variant'
            where = {} if 'tokens_per_block' in self.options else dict(start=start, grid=(cells, cells))
            patch.apply(vit, name, **where, **self.options)
        try:
            begin = time.process_time()
            tokens, grid = vit(batch)
            self.times.append(time.process_time() - begin)
        finally:
            if self.method is not None:
                patch.remove(vit)
        masks = torch.cat([decoder(each[None], grid, batch.shape[-2:]) for each in tokens]) > 0.5
        return tokens[:, 1:], masks

    def compare(self, output, reference):
        """Add the agreement of a batch."""
        self.cosines += F.cosine_similarity(output[0], reference[0], dim=-1).mean(1).tolist()
        self.both += int((output[1] & reference[1]).sum())
        self.either += int((output[1] | reference[1]).sum())
        self.equal.append(float((output[1] == reference[1]).float().mean()))

    def row(self, base):
        """Return the line of the table."""
        gains = [plain / mine for plain, mine in zip(base, self.times)]
        gain, spread = statistics.median(gains), ''
        if len(gains) > 2:
            low, _, high = statistics.quantiles(gains, n=4)
            spread = f' ({low:.2f} to {high:.2f})'
        quality = f'{statistics.mean(self.cosines):.4f} | {self.both / max(1, self.either):.3f} | '
        return f'| {self.name} | {gain:.2f}{spread} | {quality}{statistics.mean(self.equal):.3f} |'


def methods(merged: int):
    """Return the methods side by side; ``merged`` tokens leave each block where every block merges."""
    every = dict(every_block=True, tokens_per_block=merged)
    return [
        Entry('expedit', 'expedit', size_bias=False),
        Entry('expedit, size bias', 'expedit', size_bias=True),
        Entry("expedit, authors' form, 0.1 of the spread", 'expedit', sharpness=0.1, **AUTHORS),
        Entry("expedit, authors' form, 0.2 of the spread", 'expedit', sharpness=0.2, **AUTHORS),
        Entry('tome, once', 'tome'),
        Entry('tome, once, no size bias', 'tome', size_bias=False),
        Entry(f'tome, every block ({merged})', 'tome', **every),
        Entry(f'tome, every block ({merged}), no size bias', 'tome', size_bias=False, **every),
        Entry(f'tome, every block ({merged}), no residual', 'tome', residual=False, **every),
        Entry('average', 'average'),
    ]


def variants(vit, start):
    """Return the options that were looked at, one changed at a time."""
    block = vit.blocks[start]
    features = [
        Entry(f'{name} features', FeatureExpedit, feature=name, block=block)
        for name in ('normalized', 'key', 'standardized')
    ]
    return [
        Entry('default: temperature 0.2 of the spread', 'expedit'),
        Entry('temperature 0.05 of the spread', 'expedit', sharpness=0.05),
        Entry('temperature 0.1 of the spread', 'expedit', sharpness=0.1),
        Entry('temperature 0.3 of the spread', 'expedit', sharpness=0.3),
        Entry('temperature 0.4 of the spread', 'expedit', sharpness=0.4),
        Entry('without residual', 'expedit', residual=False),
        Entry('search among all clusters', 'expedit', search=None),
        Entry('4 neighbors', 'expedit', num_neighbors=4),
        Entry('2 iterations', 'expedit', num_iters=2),
        *features,
        Entry('size bias in attention', 'expedit', size_bias=True),
        Entry("authors' form, temperature 50", 'expedit', temperature=50.0, **AUTHORS),
        Entry("authors' form, temperature 1", 'expedit', temperature=1.0, **AUTHORS),
        Entry("authors' form, 0.1 of the spread", 'expedit', sharpness=0.1, **AUTHORS),
        Entry('tome', 'tome'),
        Entry('tome, no size bias in attention', 'tome', size_bias=False),
        Entry('tome, raw tokens compared', 'tome', compare='tokens'),
        Entry('average', 'average'),
    ]


def picture(vit, decoder, file: str, size: int, start: int, cells: int, out: str):
    """Draw clusters over a picture, tokens as colors and the saliency before and after."""
    image = square(Image.open(file).convert('RGB'), size)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (255 * (image.permute(1, 2, 0) * std + mean)).round().clamp(0, 255).byte().numpy()

    def look():
        tokens, grid = vit(image[None])
        saliency = decoder(tokens, grid, image.shape[-2:])[0, 0]
        return tokens[0, 1:].unflatten(0, grid).numpy(), saliency.numpy()

    before = {}
    handle = vit.blocks[start].register_forward_pre_hook(lambda block, args: before.update(tokens=args[0]))
    tokens, saliency = look()
    handle.remove()
    panels = [('picture', pixels), ('tokens, three components', token_colors(tokens)), ('saliency', saliency)]
    side = size // 14
    residual = before['tokens'][:, 1:].unflatten(1, (side, side))
    state = cluster_tokens(residual, (cells, cells), temperature=0.2 * token_spread(residual, (cells, cells)))
    nearest = token_neighbors(state, num_neighbors=1, window=5).indices.view(side, side)
    patch.apply(vit, start=start, grid=(cells, cells))
    reduced, mask = look()
    patch.remove(vit)
    panels += [
        (f'{side}x{side} tokens in {cells}x{cells} clusters', paint_token_clusters(pixels, nearest.numpy())),
        ('tokens after clustering', token_colors(reduced, like=tokens)),
        ('saliency after clustering', mask),
    ]
    save_token_panels(out, panels)


@torch.inference_mode()
def measure(vit, decoder, images: torch.Tensor, cells: int, arguments: argparse.Namespace) -> None:
    """Run every line of a part on the pictures and print the table."""
    side, start = arguments.size // 14, arguments.start
    ideal = ideal_gain(vit, start, cells, side)
    print(
        f'{arguments.images} pictures of {arguments.size} pixels ({arguments.set}), batch {arguments.batch}, '
        f'{side}x{side} -> {cells}x{cells} tokens after {start} of {len(vit.blocks)} blocks, FLOP ratio {ideal:.3f};'
    )
    merged = tokens_per_block(vit, ideal, side)
    entries = methods(merged) if arguments.part == 'methods' else variants(vit, start)
    if arguments.only:
        entries = [entries[number] for number in arguments.only]
    plain = Entry('plain')
    plain.run(vit, decoder, images[:1], start, cells)  # warms up
    plain.times.clear()
    for batch in images.split(arguments.batch):
        reference = plain.run(vit, decoder, batch, start, cells)
        for entry in entries:
            entry.compare(entry.run(vit, decoder, batch, start, cells), reference)
    print(f'plain: median {1e3 * statistics.median(plain.times):.0f} ms a batch.\n')
    print('| method | gain (quartiles) | cosine | IoU of masks | equal pixels |')
    print('|---|---|---|---|---|')
    for entry in entries:
        print(entry.row(plain.times), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', choices=('methods', 'variants', 'picture'))
    parser.add_argument('--image', help='of the part picture')
    parser.add_argument('--out', default='tokens.png', help='of the part picture')
    parser.add_argument('--data', default=os.environ.get('CLUSTERPLUG_DATA'), help='data folder')
    parser.add_argument('--size', type=int, default=518, help='side in pixels, a multiple of 14')
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--set', choices=('mixed', 'kitti', 'frames', 'clips'), default='mixed', help='pictures')
    parser.add_argument('--batch-size', dest='batch', type=int, default=1)
    parser.add_argument('--start', type=int, default=5, help='first reduced block')
    parser.add_argument('--cells', type=int, help='side of the reduced map, instead of --speedup')
    parser.add_argument('--speedup', type=float, default=1.4, help='least FLOP ratio')
    parser.add_argument('--only', nargs='+', type=int, help='numbers of the lines to run, from 0')
    parser.add_argument('--page', help='page whose part "token-quality-PART-SIZE-BATCH" is replaced')
    arguments = parser.parse_args()
    if arguments.page and arguments.only:
        parser.error('--page needs all lines: a table with rows left out cannot be read')
    if arguments.data is None:
        parser.error('--data or CLUSTERPLUG_DATA must name the data folder')
    data = Path(arguments.data)
    vit, decoder = load(data)
    side, start = arguments.size // 14, arguments.start
    fitting = [cells for cells in range(side, 0, -1) if ideal_gain(vit, start, cells, side) >= arguments.speedup]
    cells = arguments.cells or fitting[0]
    if arguments.part == 'picture':
        with torch.inference_mode():
            picture(vit, decoder, arguments.image, arguments.size, start, cells, arguments.out)
        return
    name = f'token-quality-{arguments.part}-{arguments.size}-{arguments.batch}'
    with published(arguments.page, name):
        header(('numpy',))
        measure(vit, decoder, pictures(data, arguments.images, arguments.size, arguments.set), cells, arguments)


if __name__ == '__main__':
    main()
