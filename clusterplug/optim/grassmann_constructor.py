# SPDX-License-Identifier: Apache-2.0
"""By config: the groups of RiemannianSGD for a model with Grassmann heads, on top of mmengine's own rules."""

from torch import nn

from clusterplug.core.checks import check_number
from clusterplug.optim.riemannian_sgd import RiemannianSGD
from clusterplug.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['GrassmannOptimWrapperConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GrassmannOptimWrapperConstructor:
    """mmengine's constructor, with a group of its own for the bases of each Grassmann head.

    All rules of ``paramwise_cfg`` (``custom_keys``, ``norm_decay_mult``, ...) hold for the other parameters. Bases get
    no weight decay and ``grassmann_lr_mult`` times the rate; schedules then change both alike.

    Args:
        optim_wrapper_cfg: As for mmengine's ``DefaultOptimWrapperConstructor``, with an optimizer of type
            ``clusterplug.RiemannianSGD``; ``base='adamw'`` or ``'lamb'`` in it are the paper's composites.
        paramwise_cfg: As there, and ``grassmann_lr_mult`` (1 by default; 100 with AdamW at 1e-3, 60 with LAMB at 5e-3).

    Raises:
        ValueError: Another optimizer, a model without bases to train, a multiplier that is not positive.

    Source: Wang, Li, Zhang, ICCV 2023 (arXiv 2308.01547); ``lr_factor`` of the official code innerlee/GCR (Apache-2.0).

    Example::

        optim_wrapper = dict(
            constructor='clusterplug.GrassmannOptimWrapperConstructor',
            paramwise_cfg=dict(grassmann_lr_mult=100),
            optimizer=dict(type='clusterplug.RiemannianSGD', lr=1e-3, momentum=0.9, base='adamw', weight_decay=0.05),
        )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        self.optim_wrapper_cfg = optim_wrapper_cfg
        self.paramwise_cfg = dict(paramwise_cfg or {})
        check_number(self.paramwise_cfg.setdefault('grassmann_lr_mult', 1.0), 'grassmann_lr_mult', above=0)

    def __call__(self, model: nn.Module):
        wrapper = _constructor(self.optim_wrapper_cfg, self.paramwise_cfg)(model)
        optimizer = getattr(wrapper, 'optimizer', None)
        if not isinstance(optimizer, RiemannianSGD):
            raise ValueError(
                f'the optimizer must be clusterplug.RiemannianSGD, got {type(optimizer).__name__}, which would take '
                f"bases off their manifold; write optimizer=dict(type='clusterplug.RiemannianSGD', base='adamw', ...)"
            )
        if not any(group['manifold'] == 'grassmann' for group in optimizer.param_groups):
            raise ValueError(
                f'{type(model).__name__} has no Grassmann head to train; swap its classifier with '
                f'clusterplug.attach.swap_classifier, or use another constructor'
            )
        return wrapper


def _constructor(optim_wrapper_cfg: dict, paramwise_cfg: dict):
    from mmengine.optim import DefaultOptimWrapperConstructor

    class Constructor(DefaultOptimWrapperConstructor):
        def add_params(self, params, module, prefix='', is_dcn_module=None):
            if getattr(module, 'manifold', None) != 'grassmann':
                super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
            elif module.weight.requires_grad and not self._is_in(dict(params=[module.weight]), params):
                group = dict(params=[module.weight], manifold='grassmann', subspace_dim=module.subspace_dim)
                rate = self.base_lr * self.paramwise_cfg['grassmann_lr_mult']
                params.append(dict(group, lr=rate, weight_decay=0.0))

    return Constructor(optim_wrapper_cfg, paramwise_cfg)
