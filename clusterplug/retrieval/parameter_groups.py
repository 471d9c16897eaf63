# SPDX-License-Identifier: Apache-2.0
"""Learning rates and weight decay of a retrieval model, by what a parameter is and not by a part of its name."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from clusterplug.registry import OPTIM_WRAPPER_CONSTRUCTORS

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RetrievalOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give the towers the optimizer's rate, the head its own, and decay to neither gains nor biases nor scales.

    All parameters of ``model.encoders`` train at ``optimizer.lr``, whatever they are called inside; those outside of
    it (the head's) at ``head_lr_mult`` times as much. ``optimizer.weight_decay`` is for matrices and embeddings:
    gains of norms, biases, and the scale and bias of the logits are not decayed, in the towers and in the head.

    Args:
        optim_wrapper_cfg: As for mmengine's ``DefaultOptimWrapperConstructor``.
        paramwise_cfg: ``head_lr_mult`` (float), defaults to 1.

    Raises:
        ValueError: Another key than ``head_lr_mult``. When called: a model without ``encoders``.

    Source:
        CLIP4Clip and CenterCLIP divide parameters into those of CLIP and the rest likewise.

        **Differs from the authors' code**: theirs decays the gains of CLIP's norms, whose names (``ln_1``) are not
        among the exempted ones (``LayerNorm``), and the scale of the logits.

    Example:
        ``optim_wrapper = dict(constructor='clusterplug.RetrievalOptimWrapperConstructor',
        paramwise_cfg=dict(head_lr_mult=20), optimizer=dict(type='AdamW', lr=5e-6, weight_decay=0.2), ...)``
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        settings = dict(head_lr_mult=1.0) | dict(paramwise_cfg or {})
        unknown = sorted(set(settings) - {'head_lr_mult'})
        if unknown:
            raise ValueError(
                f'paramwise_cfg of RetrievalOptimWrapperConstructor has the key head_lr_mult, got '
                f'{", ".join(unknown)}; for rules by name use constructor=DefaultOptimWrapperConstructor'
            )
        if not isinstance(settings['head_lr_mult'], int | float) or settings['head_lr_mult'] < 0:
            raise ValueError(f'head_lr_mult must be a number of at least 0, got {settings["head_lr_mult"]!r}')
        super().__init__(optim_wrapper_cfg, settings)

    def add_params(self, params: list[dict], module: nn.Module, **_) -> None:
        """Append one group for each of towers and head, decayed and not, that has parameters to train."""
        if not isinstance(getattr(module, 'encoders', None), nn.Module):
            raise ValueError(
                f'the model must have encoders, as clusterplug.CenterCLIP has, got {type(module).__name__}'
            )
        towers = {id(parameter) for parameter in module.encoders.parameters()}
        owners = [(owner, name, p) for owner in module.modules() for name, p in owner.named_parameters(recurse=False)]
        groups, seen = {}, set()
        for owner, name, parameter in owners:
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))  # shared ones count once
            key = id(parameter) in towers, _is_decayed(owner, name, parameter)
            groups.setdefault(key, []).append(parameter)
        for (in_towers, decayed), members in sorted(groups.items(), reverse=True):
            group = dict(
                params=members, name=f'{"towers" if in_towers else "head"}{"" if decayed else ", not decayed"}'
            )
            if self.base_lr is not None:
                group['lr'] = self.base_lr * (1 if in_towers else self.paramwise_cfg['head_lr_mult'])
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd if decayed else 0.0
            params.append(group)


def _is_decayed(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(owner, _NORMS) or name.endswith('bias'):
        return False
    return parameter.dim() > 1 or 'embed' in name  # the class embedding is a vector, and no gain
