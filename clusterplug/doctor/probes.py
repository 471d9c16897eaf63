# SPDX-License-Identifier: Apache-2.0
"""Small computations that tell whether a part works; started by ``runner``, one process for many probes.

Each probe prints a line of JSON as soon as it is done. Hosts are imported inside the probes alone.
"""

import contextlib
import importlib
import importlib.util
import json
import sys
import warnings

__all__ = ['PROBES', 'main']


def kernels() -> str:
    """Sinkhorn's plan of 8 points and 2 clusters has the marginals that were asked for."""
    import torch

    from clusterplug.functional.transport import sinkhorn

    scores = torch.linspace(-1, 1, 16).reshape(8, 2)
    plan = sinkhorn(scores, epsilon=0.1, num_iters=100)
    if not torch.allclose(plan.sum(-2) / plan.sum(), torch.full((2,), 0.5), atol=1e-3):
        raise RuntimeError(f'sinkhorn gave the marginals {plan.sum(-2).tolist()}')
    return f'torch {torch.__version__}'


def losses() -> str:
    """The packages of losses and layers import."""
    return _import_all(('losses', 'memory', 'heads', 'layers'))


def estimators() -> str:
    """The estimators import."""
    return _import_all(('estimators',))


def registry() -> str:
    """mmengine finds a class of clusterplug without a custom_imports line."""
    from mmengine.registry import MODELS

    if MODELS.get('clusterplug.PointClusterLoss') is None:
        raise RuntimeError('clusterplug.PointClusterLoss is not in the registry')
    return ''


def hosts() -> str:
    """mmdet3d's MinkUNet builds, and a sparse convolution runs on every kind of device."""
    import mmdet3d.models  # noqa: F401
    import spconv.pytorch as spconv
    import torch
    from mmdet3d.registry import MODELS

    from clusterplug import compat

    compat.apply_all()
    MODELS.build(
        dict(type='MinkUNetBackbone', encoder_blocks=[1] * 4, decoder_blocks=[1] * 4, sparseconv_backend='spconv')
    )
    devices = ['cpu', 'cuda'] if torch.cuda.is_available() and _spconv_has_cuda() else ['cpu']
    for device in devices:
        places = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32, device=device)
        x = spconv.SparseConvTensor(torch.ones(2, 4, device=device), places, [4, 4, 4], 1)
        if spconv.SubMConv3d(4, 4, 3).to(device)(x).features.shape != (2, 4):
            raise RuntimeError(f'a sparse convolution on {device} returned the wrong shape')
    return f'sparse convolution on {" and ".join(devices)}'


def tokens() -> str:
    """A map of tokens is clustered and rebuilt."""
    import torch

    from clusterplug.functional import cluster_tokens, reconstruct_tokens

    x = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
    clusters = cluster_tokens(x, (2, 2))
    if reconstruct_tokens(clusters.centers, clusters).shape != x.shape:
        raise RuntimeError('reconstructed tokens have another shape than the tokens')
    return ''


def tokens_timm() -> str:
    """A tiny timm model is patched, runs, and is given back."""
    import timm
    import torch

    model = timm.create_model('vit_tiny_patch16_224', depth=2, embed_dim=24, num_heads=2, img_size=64, num_classes=0)
    return _patched(model.eval(), lambda: model.forward_features(torch.ones(1, 3, 64, 64)))


def tokens_transformers() -> str:
    """A tiny model of transformers is patched, runs, and is given back."""
    import torch
    from transformers import ViTConfig, ViTModel

    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=64)
    model = ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval()
    return _patched(model, lambda: model(torch.ones(1, 3, 64, 64)).last_hidden_state)


def _patched(model, run) -> str:
    import torch

    from clusterplug import patch

    with torch.no_grad():
        plain = run()
        patch.apply(model, start=1, keep_ratio=0.5)
        fewer = run()
        patch.remove(model)
        again = run()
    if fewer.shape != plain.shape or not torch.equal(plain, again):
        raise RuntimeError('the patched model gives another shape, or the model was not given back as it was')
    return ''


def retrieval() -> str:
    """The retrieval model and its data set import, and the mm registry knows them."""
    from mmengine.registry import DATASETS, MODELS

    for registry, name in ((MODELS, 'CenterCLIP'), (DATASETS, 'VideoTextDataset')):
        if registry.get(f'clusterplug.{name}') is None:
            raise RuntimeError(f'clusterplug.{name} is not in the registry')
    return ''


def fec() -> str:
    """The smallest FEC makes maps of four scales."""
    import torch

    from clusterplug.backbones import FEC

    with torch.no_grad():
        maps = FEC(arch='small').eval()(torch.ones(1, 3, 64, 64))
    return ', '.join('x'.join(map(str, each.shape[-2:])) for each in maps)


def lidar_city() -> str:
    """A ray of Open3D hits a box at the distance that it must, and the generator imports."""
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.t.geometry.TriangleMesh.create_box())
    rays = o3d.core.Tensor([[0.3, 0.4, -2.0, 0, 0, 1]], dtype=o3d.core.float32)
    distance = float(scene.cast_rays(rays)['t_hit'].numpy()[0])
    if abs(distance - 2) > 1e-4:
        raise RuntimeError(f'a ray hit the box after {distance} m instead of 2 m')
    importlib.import_module('clusterplug.datasets.lidar_city')
    return ''


def pictures() -> str:
    """matplotlib draws without a display."""
    import io

    import matplotlib

    matplotlib.use('Agg')
    from matplotlib.figure import Figure

    Figure().savefig(io.BytesIO(), format='png')
    return ''


def tests() -> str:
    """The test tools import."""
    for name in ('pytest', 'hypothesis'):
        importlib.import_module(name)
    return ''


def docs() -> str:
    """The documentation tools import."""
    for name in ('mkdocs', 'material', 'mkdocstrings', 'mkdocstrings_handlers.python'):
        importlib.import_module(name)
    return ''


def devices() -> dict:
    """What torch, spconv and mmcv can compute on."""
    import torch

    cuda = torch.cuda.is_available()
    found = {
        'threads': torch.get_num_threads(),
        'cuda': cuda,
        'cuda_of_torch': torch.version.cuda,
        'names': [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        'spconv_cuda': None,
        'mmcv_cuda': None,
    }
    # A host that does not import is reported by its own probe.
    with contextlib.suppress(Exception):
        found['spconv_cuda'] = _spconv_has_cuda()
    with contextlib.suppress(Exception):
        from mmcv.ops import get_compiling_cuda_version

        found['mmcv_cuda'] = get_compiling_cuda_version() != 'not available'
    return found


def workarounds() -> list[dict]:
    """Faults of hosts that clusterplug.compat works around."""
    from clusterplug import compat

    keys = ('name', 'host', 'thread', 'noted', 'until')
    return [{key: getattr(workaround, key) for key in keys} for workaround in compat.workarounds()]


PROBES = {
    probe.__name__: probe
    for probe in (
        kernels, losses, estimators, registry, hosts, tokens, tokens_timm, tokens_transformers, retrieval, fec,
        lidar_city, pictures, tests, docs, devices, workarounds,
    )
}  # fmt: skip


def main(names: list[str]) -> None:
    """Run probes and print their results.

    Args:
        names: ``'import MODULE'`` or keys of ``PROBES``.
    """
    warnings.simplefilter('ignore')
    for name in names:
        try:
            if name.startswith('import '):
                value = bool(importlib.import_module(name[len('import ') :])) and None
            else:
                value = PROBES[name]()
            entry = {'name': name, 'ok': True, 'error': '', 'value': value}
        except (Exception, SystemExit) as error:
            text = ' '.join(str(error).split())
            entry = {'name': name, 'ok': False, 'error': f'{type(error).__name__}: {text}'[:300], 'value': None}
        print('\nprobe: ' + json.dumps(entry), flush=True)


def _spconv_has_cuda():
    from spconv.core_cc.csrc.sparse.all import SpconvOps

    return not SpconvOps.is_cpu_only_build()


def _import_all(names):
    here = [name for name in names if getattr(importlib.util.find_spec(f'clusterplug.{name}'), 'origin', None)]
    for name in here:
        importlib.import_module(f'clusterplug.{name}')
    return ', '.join(here) or 'none yet in this version'


if __name__ == '__main__':
    main(sys.argv[1:])
