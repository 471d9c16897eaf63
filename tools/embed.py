# SPDX-License-Identifier: Apache-2.0
"""Write features of several frozen backbones into a bank that every estimator reads without loading it.

    python tools/embed.py CONFIG
    python tools/embed.py CONFIG --out OTHER --device cuda

CONFIG is a Python file with

    inputs = 'pictures'      # a folder of pictures, or a .npy file of arrays (N, C, H, W) that is fed as it is
    out = 'bank'             # gets one .npy a view, and bank.json with the names of the rows
    views = dict(
        resnet=dict(type='timm.resnet18', pretrained=True),          # any timm model, with its own transform
        dino=dict(type='timm.vit_small_patch14_dinov2.lvd142m', pretrained=True),
        own=dict(type='clusterplug.FEC', image_size=224, ...),       # any model of the registry; checkpoint='...'
    )
    batch_size = 64          # optional, as are dtype = 'float16' and device = 'cpu'

Maps (B, C, H, W) are averaged over their positions. A view that the bank holds of the same settings, checkpoint and
pictures is not computed again. Pictures that cannot be read are listed in bank.json and have no row. Then:
MultiViewClustering(20).fit(read_bank('bank')).
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.outputs import fingerprint, output_folder
from clusterplug.estimators.feature_bank import is_current, write_view
from clusterplug.user_errors import run_tool

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.ppm'}


def build(name, settings):
    """Return a frozen extractor, and the transform of a picture to its input."""
    settings = dict(settings)
    torch.manual_seed(0)  # of weights that nobody trained
    kind, size, checkpoint = settings.pop('type'), settings.pop('image_size', None), settings.pop('checkpoint', None)
    if kind.startswith('timm.'):
        import timm

        if size is not None and 'vit' in kind:
            settings['img_size'] = size
        model = timm.create_model(kind.removeprefix('timm.'), num_classes=0, **settings)
        options = timm.data.resolve_model_data_config(model)
        if size is not None:
            options['input_size'] = (3, size, size)
        transform = timm.data.create_transform(**options, is_training=False)
    else:
        from torchvision.transforms import v2

        from clusterplug.registry import MODELS

        model = MODELS.build(dict(type=kind, **settings))
        size = size or 224
        transform = v2.Compose([
            v2.ToImage(), v2.Resize(size), v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])  # fmt: skip
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)
        missing = model.load_state_dict(state.get('state_dict', state), strict=False).missing_keys
        if missing:
            raise ValueError(f'view {name}: {checkpoint} lacks {len(missing)} weights, such as {missing[0]}')
    return model.eval(), transform


def pooled(output):
    """One vector a sample, of what a model returns."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        output = output[-1]
    if output.dim() == 4:
        return output.mean((2, 3))
    if output.dim() == 3:
        return output.mean(1)
    return output


@torch.no_grad()
def blocks(model, transform, inputs, device, batch_size):
    """Yield the features of the inputs, a batch at a time."""
    for first in range(0, len(inputs), batch_size):
        part = inputs[first : first + batch_size]
        if isinstance(inputs, np.ndarray):
            batch = torch.from_numpy(np.array(part, dtype=np.float32))
        else:
            from PIL import Image

            pictures = []
            for path in part:
                with Image.open(path) as picture:
                    pictures.append(transform(picture.convert('RGB')))
            batch = torch.stack(pictures)
        yield pooled(model(batch.to(device))).float().cpu().numpy()
        print(f'\r  {min(first + batch_size, len(inputs))} of {len(inputs)}', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='Python file, see above')
    parser.add_argument('--out', help='folder of the bank (default: out of the config)')
    parser.add_argument('--device', help='device of the backbones (default: device of the config, or cpu)')
    options = parser.parse_args(arguments)
    from mmengine.config import Config

    config = Config.fromfile(options.config)
    for name in ('inputs', 'views'):
        if name not in config:
            parser.error(f'{options.config} must set {name}')
    out = options.out or config.get('out')
    if not out:
        parser.error('name the folder of the bank: out in the config, or --out')
    source = Path(config.inputs)
    if not source.exists():
        parser.error(f'{options.config} names inputs that do not exist: {source}')
    try:
        with output_folder(out, 'embed', sources=[source, options.config], keep=True):
            fill(config, source, Path(out), torch.device(options.device or config.get('device', 'cpu')))
    except (OSError, ValueError) as error:
        sys.exit(f'embed: {error}')


def fill(config, source, out, device):
    """Write the views that the bank does not hold yet, or holds of other settings or inputs."""
    unreadable = {}
    if source.suffix == '.npy':
        inputs = np.load(source, mmap_mode='r', allow_pickle=False)
        rows = [str(number) for number in range(len(inputs))]
        state = fingerprint(source)
    else:
        found = sorted(path for path in source.rglob('*') if path.suffix.lower() in SUFFIXES)
        unreadable = unreadable_of(source, found)
        inputs = [path for path in found if path.relative_to(source).as_posix() not in unreadable]
        rows = [path.relative_to(source).as_posix() for path in inputs]
        state = hashlib.sha256(json.dumps([[name, fingerprint(path)] for name, path in zip(rows, inputs)]).encode())
        state = state.hexdigest()
    if not rows:
        raise ValueError(f'{source} holds no pictures; allowed are {sorted(SUFFIXES)}')
    dtype = config.get('dtype', 'float16')
    for name, settings in config.views.items():
        checkpoint = settings.get('checkpoint')
        made_of = dict(inputs=state, dtype=dtype, settings=repr(sorted(dict(settings).items())))
        made_of['checkpoint'] = fingerprint(checkpoint) if checkpoint else None
        if is_current(out, name, made_of):
            print(f'{name}: in the bank already')
            continue
        with torch.random.fork_rng(devices=[]):
            model, transform = build(name, settings)
        parts = blocks(model.to(device), transform, inputs, device, int(config.get('batch_size', 64)))
        shape = write_view(out, name, parts, rows, dtype, made_of, unreadable)
        print(f'{name}: {shape[0]} x {shape[1]}')
    if unreadable:
        print(f'{len(unreadable)} pictures could not be read and have no row:')
        print('\n'.join(f'  {name!r}: {why}' for name, why in unreadable.items()))
    print(f'bank of {len(rows)} rows in {out}')


def unreadable_of(source, paths):
    """Pictures that cannot be decoded, with the reason; found first, as all views have the same rows."""
    from PIL import Image

    found = {}
    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.draft('RGB', (1, 1))  # JPEG is read to its end at an eighth of its size
                picture.load()
        except Exception as error:  # decoders raise SyntaxError, struct.error and more for damaged files
            found[path.relative_to(source).as_posix()] = f'{type(error).__name__}: {error}'.splitlines()[0]
    return found


if __name__ == '__main__':
    sys.exit(run_tool(main, 'embed'))
