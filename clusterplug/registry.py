# SPDX-License-Identifier: Apache-2.0
"""Registries of clusterplug (scope ``clusterplug``), children of mmengine's.

``type='clusterplug.X'`` in any mm config imports this file by itself and, at the first look-up, the modules in
``locations``: users need no ``custom_imports`` line. This file imports ``mmengine.registry`` alone, because mmengine
swallows an ImportError that happens here and reports "X is not in the registry" instead.

Without mmengine the decorators do nothing, so losses and layers stay usable as plain ``nn.Module``.
"""

__all__ = [
    'DATASETS', 'DATA_SAMPLERS', 'HOOKS', 'METRICS', 'MODELS', 'OPTIMIZERS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'TRANSFORMS',
]  # fmt: skip


class _PlainDecorator:
    """Stands in for a registry where mmengine is not installed."""

    def __init__(self, name):
        self.name = name

    def register_module(self, *args, **kwargs):
        return lambda module: module

    def build(self, cfg, *args, **kwargs):
        raise ModuleNotFoundError(
            f'building {self.name} from a config needs mmengine, which is not installed; '
            f"install it with: pip install 'clusterplug[mmdet3d]'"
        )


try:
    from mmengine import registry as _mm
except ModuleNotFoundError:
    MODELS = _PlainDecorator('models')
    HOOKS = _PlainDecorator('hooks')
    DATASETS = _PlainDecorator('datasets')
    TRANSFORMS = _PlainDecorator('transforms')
    METRICS = _PlainDecorator('metrics')
    DATA_SAMPLERS = _PlainDecorator('data samplers')
    OPTIMIZERS = _PlainDecorator('optimizers')
    OPTIM_WRAPPER_CONSTRUCTORS = _PlainDecorator('optim wrapper constructors')
else:
    from mmengine.config import utils as _config_utils

    # ``clusterplug::family/config.py`` names a config of clusterplug, as ``mmdet3d::...`` names one of mmdet3d.
    # mmengine knows a closed list of packages. It asks for a distribution of this name first, whose folder an editable
    # install does not tell, and then for a module, whose folder is right in every kind of install: hence a module.
    _config_utils.MODULE2PACKAGE.setdefault('clusterplug', 'clusterplug.version')
    MODELS = _mm.Registry(
        'model',
        parent=_mm.MODELS,
        scope='clusterplug',
        locations=[
            'clusterplug.layers',
            'clusterplug.backbones',
            'clusterplug.losses',
            'clusterplug.memory',
            'clusterplug.heads',
            'clusterplug.pretraining',
            'clusterplug.attach',
            'clusterplug.retrieval',
            'clusterplug.patch.mm_backbone',
        ],
    )
    HOOKS = _mm.Registry(
        'hook',
        parent=_mm.HOOKS,
        scope='clusterplug',
        locations=['clusterplug.hooks'],
    )
    DATASETS = _mm.Registry(
        'dataset',
        parent=_mm.DATASETS,
        scope='clusterplug',
        locations=[
            'clusterplug.datasets.images',
            'clusterplug.datasets.indexed_concat',
            'clusterplug.datasets.own_scans',
            'clusterplug.datasets.semantickitti_multiscan',
            'clusterplug.datasets.video.dataset',
        ],
    )
    TRANSFORMS = _mm.Registry(
        'transform',
        parent=_mm.TRANSFORMS,
        scope='clusterplug',
        locations=[
            'clusterplug.datasets.load_instances',
            'clusterplug.datasets.previous_scans',
            'clusterplug.datasets.transforms',
            'clusterplug.datasets.video.transforms',
        ],
    )
    METRICS = _mm.Registry('metric', parent=_mm.METRICS, scope='clusterplug', locations=['clusterplug.evaluation'])
    OPTIM_WRAPPER_CONSTRUCTORS = _mm.Registry(
        'optimizer wrapper constructor',
        parent=_mm.OPTIM_WRAPPER_CONSTRUCTORS,
        scope='clusterplug',
        locations=['clusterplug.optim', 'clusterplug.retrieval.parameter_groups'],
    )
    DATA_SAMPLERS = _mm.Registry(
        'data sampler',
        parent=_mm.DATA_SAMPLERS,
        scope='clusterplug',
        locations=['clusterplug.datasets.samplers'],
    )
    OPTIMIZERS = _mm.Registry(
        'optimizer',
        parent=_mm.OPTIMIZERS,
        scope='clusterplug',
        locations=['clusterplug.optim'],
    )
