# SPDX-License-Identifier: Apache-2.0
"""One encoder, two passes: with noise before its stages, and without."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_number
from clusterplug.registry import MODELS

__all__ = ['NoisyCleanEncoder', 'NoisyCleanFeatures']


class NoisyCleanFeatures(NamedTuple):
    """Outputs of the stages, the last one being that of the encoder, of both passes."""

    noisy: list  # of each stage
    clean: list


class _Pass:
    """What the hooks of one pass need: one object a call, so that threads do not meet."""

    def __init__(self, owner: 'NoisyCleanEncoder', noisy: bool, generator: torch.Generator | None):
        self.owner, self.noisy, self.generator = owner, noisy, generator
        self.outputs: dict[int, Any] = {}


_CURRENT: ContextVar[_Pass | None] = ContextVar('noisy_clean_pass', default=None)


@MODELS.register_module()
class NoisyCleanEncoder(nn.Module):
    """Run any backbone twice with the same weights: dropout before each of its stages, and none.

    The loss of clusters goes to the noisy pass, targets come from the clean one.

    Args:
        backbone: Any module, or a config of one. Stages may return tensors, or objects that hold ``features`` and
            ``replace_feature`` as the tensors of spconv do: then noise falls on the features of the points.
        stages: Names of the submodules before which noise falls, and whose outputs are kept, in the order in which
            they run; None = the children of an ``nn.Sequential``.
        dropout: Share of what is dropped before each stage, one or one for each. What is left is scaled up by
            1 / (1 - share).
        drop: ``'element'``: single values; ``'row'``: whole samples, points or tokens, that is whole vectors along the
            last dimension (``features`` of sparse tensors), which are set to 0.

    ``forward(x, generator=None)`` returns ``NoisyCleanFeatures(noisy, clean)``, two lists of the outputs of the
    stages. In eval mode, or where nothing is dropped, there is one pass and both lists are the same. The generator
    lies on the CPU or on the device of the features. A batch norm in the backbone sees both passes.

    Raises:
        ValueError: Unknown stages, a share outside [0, 1), a stage that did not run.

    Source: Ghasedi Dizaji et al., DEPICT, ICCV 2017, section 3.2.

    Example:
        >>> encoder = NoisyCleanEncoder(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), dropout=(0.5, 0, 0))
        >>> noisy, clean = encoder(torch.ones(3, 4))
        >>> [tuple(each.shape) for each in clean]
        [(3, 8), (3, 8), (3, 2)]
    """

    def __init__(
        self,
        backbone: nn.Module | dict,
        stages: Sequence[str] | None = None,
        dropout: float | Sequence[float] = 0.1,
        drop: str = 'element',
    ):
        super().__init__()
        self.backbone = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        known = dict(self.backbone.named_modules())
        if stages is None:
            if not isinstance(self.backbone, nn.Sequential):
                names = [name for name, _ in self.backbone.named_children()]
                raise ValueError(f'stages must name submodules of {type(self.backbone).__name__}, such as {names[:6]}')
            stages = [name for name, _ in self.backbone.named_children()]
        unknown = [name for name in stages if name not in known]
        if unknown or not stages:
            raise ValueError(f'stages must name submodules of the backbone, got {unknown or "none"}')
        self.stages = list(stages)
        shares = [dropout] * len(self.stages) if not isinstance(dropout, Sequence) else list(dropout)
        if len(shares) != len(self.stages):
            raise ValueError(f'dropout must hold one share for each of the stages {self.stages}, got {dropout!r}')
        self.dropout = [check_number(share, 'dropout', 0, 0.999) for share in shares]
        self.drop = check_choice(drop, 'drop', ('element', 'row'))
        for number, name in enumerate(self.stages):
            known[name].register_forward_pre_hook(_Before(number))
            known[name].register_forward_hook(_After(number))

    def forward(self, x: Any, generator: torch.Generator | None = None) -> NoisyCleanFeatures:
        """Return the features of both passes."""
        clean = self.encode(x)
        if not self.training or not any(self.dropout):
            return NoisyCleanFeatures(clean, clean)
        return NoisyCleanFeatures(self._run(x, True, generator), clean)

    def encode(self, x: Any) -> list:
        """Return the features of the clean pass alone."""
        return self._run(x, False, None)

    def _run(self, x: Any, noisy: bool, generator: torch.Generator | None) -> list:
        current = _Pass(self, noisy, generator)
        token = _CURRENT.set(current)
        try:
            self.backbone(x)
        finally:
            _CURRENT.reset(token)
        missing = [name for number, name in enumerate(self.stages) if number not in current.outputs]
        if missing:
            raise ValueError(f'stages {missing} did not run in the forward pass of the backbone; leave them out')
        return [current.outputs[number] for number in range(len(self.stages))]

    def _owns(self, number: int, module: nn.Module) -> bool:
        return self.backbone.get_submodule(self.stages[number]) is module


class _Before:
    """Noise before a stage. A class, not a closure, so that the module can be copied and pickled."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        current = _CURRENT.get()
        if current is None or not current.noisy or not current.owner._owns(self.number, module):
            return None
        share = current.owner.dropout[self.number]
        if not share or not args:
            return None
        return (_drop(args[0], share, current.owner.drop, current.generator), *args[1:])


class _After:
    def __init__(self, number: int):
        self.number = number

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        current = _CURRENT.get()
        if current is not None and current.owner._owns(self.number, module):
            current.outputs[self.number] = output


def _drop(x: Any, share: float, drop: str, generator: torch.Generator | None) -> Any:
    if not isinstance(x, Tensor):
        if not hasattr(x, 'replace_feature'):
            raise TypeError(f'a stage got {type(x).__name__}; noise falls on tensors, or on objects with '
                            f'features and replace_feature')  # fmt: skip
        return x.replace_feature(_drop(x.features, share, drop, generator))
    shape = x.shape if drop == 'element' else (*x.shape[:-1], 1)
    device = x.device if generator is None else generator.device
    kept = torch.rand(shape, generator=generator, device=device, dtype=torch.float32).to(x.device) >= share
    return x * kept / (1 - share)
