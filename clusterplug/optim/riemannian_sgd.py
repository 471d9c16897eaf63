# SPDX-License-Identifier: Apache-2.0
"""One optimizer for models some of whose weights are subspaces: geodesic steps for these, SGD, AdamW, LAMB for all."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.distributed import world_size
from clusterplug.functional import grassmann_step
from clusterplug.optim.lamb import lamb
from clusterplug.registry import OPTIMIZERS

__all__ = ['RiemannianSGD', 'grassmann_groups']

_BASES = ('sgd', 'adamw', 'lamb')


@OPTIMIZERS.register_module()
class RiemannianSGD(torch.optim.Optimizer):
    r"""SGD on the Grassmann manifold for groups that say so, SGD, AdamW or LAMB for all other groups.

    For bases S (in rows, K n x D, as in :class:`~clusterplug.heads.GrassmannHead`) with gradient D:

    .. math:: M \leftarrow \mu M + (1 - d) D, \quad G = M - S S^\top M, \quad S \leftarrow \exp_S(-\eta G),

    a geodesic step by n x n matrices (:func:`~clusterplug.functional.grassmann_step`). The buffer M is Euclidean and is
    projected at each step anew. There is no weight decay: it does nothing to a subspace.

    It is an ordinary optimizer: every parameter is in ``param_groups``, so schedules, gradient clipping, ``GradScaler``
    (a scaled step is the fp32 step; a step with an inf in the bases alone is skipped) and resuming see all of them; the
    state is per parameter, so heads do not touch each other.

    Args:
        params: Parameters or groups. A group with ``manifold='grassmann'`` and ``subspace_dim=n`` holds weights of
            (K n, D); :func:`grassmann_groups` makes the groups of a model, and by config
            ``GrassmannOptimWrapperConstructor`` does. Each group may have its own value of every option here.
        lr: eta; of a Grassmann group the angle by which a unit gradient turns a subspace.
        momentum: mu, of Grassmann groups and of ``base='sgd'``.
        reorthonormalize_every: Steps of a parameter after which rounding is removed from its basis (which keeps the
            sign of every column, so that momentum stays valid), and, over several ranks, the basis of rank 0 is sent to
            all. 0: never.
        dampening: d, as in ``torch.optim.SGD``: the first buffer is the gradient itself.
        weight_decay: Of other groups: L2 for 'sgd', decoupled for 'adamw', in the ratio for 'lamb'.
        base: What the other groups use: 'sgd', 'adamw' (both torch's own), 'lamb'.
        betas: Of 'adamw' and 'lamb'.
        eps: Of 'adamw' (1e-8) and 'lamb' (1e-6 is usual).
        retraction: 'geodesic' or 'qr', first-order equal (no eigenvectors).
        maximize: Ascend.

    Raises:
        ValueError: An option out of range; a Grassmann group without ``subspace_dim``, with a weight decay, or with a
            weight that is not (K n, D) with n <= D.
        RuntimeError: Sparse gradients in a Grassmann group.

    Source: Wang, Li, Zhang, ICCV 2023 (arXiv 2308.01547), algorithm 1; official code innerlee/GCR (Apache-2.0),
    ``gcr/rsgd.py``. Defaults of its ResNet50-D: lr 0.1, momentum 0.9, every 5 steps; with AdamW 0.1 / 1e-3 times the
    other groups' rate, with LAMB 0.3 / 5e-3, every step, momentum 0.9.

    **Differs from the authors' code**: one optimizer, where theirs hides a second one inside AdamW or LAMB (whose state
    is not saved, and whose gradients AMP leaves scaled); state per parameter instead of module globals; the column
    signs of the re-orthonormalization; no re-orthonormalization in the first step; any device.

    Example:
        >>> from clusterplug.heads import GrassmannHead
        >>> model = nn.Sequential(nn.Linear(8, 16), GrassmannHead(16, num_classes=3, subspace_dim=2))
        >>> optimizer = RiemannianSGD(grassmann_groups(model), lr=0.1, momentum=0.9)
        >>> model(torch.randn(5, 8)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.0,
        reorthonormalize_every: int = 5,
        *,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        base: str = 'sgd',
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        retraction: str = 'geodesic',
        maximize: bool = False,
    ):
        defaults = dict(
            lr=lr,
            momentum=momentum,
            reorthonormalize_every=reorthonormalize_every,
            dampening=dampening,
            weight_decay=weight_decay,
            base=base,
            betas=tuple(betas),
            eps=eps,
            retraction=retraction,
            maximize=maximize,
            manifold=None,
            subspace_dim=None,
        )
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as of any optimizer; that of a manifold is checked.

        Raises:
            ValueError: See the class.
        """
        if param_group.get('manifold') is not None:
            _check_grassmann_group(param_group)
            param_group = dict(param_group, weight_decay=0.0)
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Do one step; ``closure`` recomputes the loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group['manifold'] is not None:
                self._grassmann(group)
                continue
            params = [p for p in group['params'] if p.grad is not None]
            if params:
                {'sgd': self._sgd, 'adamw': self._adam, 'lamb': self._adam}[group['base']](group, params)
        return loss

    def _grassmann(self, group: dict[str, Any]) -> None:
        every, step = group['reorthonormalize_every'], group['lr'] if group['maximize'] else -group['lr']
        for p in group['params']:
            state = self.state[p]
            # counted for every parameter on every rank, with a gradient or without, as the broadcast is for all
            state['step'] = state.get('step', 0) + 1
            due = every > 0 and state['step'] % every == 0
            if p.grad is not None:
                bases = p.unflatten(0, (-1, group['subspace_dim']))
                direction = self._buffer(group, p, state).view_as(bases)
                options = {'retraction': group['retraction'], 'orthonormalize': due}
                bases.copy_(grassmann_step(bases.mT, direction.mT, step, **options).mT)
            if due and world_size() > 1:
                torch.distributed.broadcast(p.detach(), 0)

    @staticmethod
    def _buffer(group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> Tensor:
        if p.grad.is_sparse:
            raise RuntimeError('RiemannianSGD needs dense gradients of bases, got a sparse one; use sparse=False')
        if group['momentum'] == 0:
            return p.grad
        if state.get('momentum_buffer') is None:
            state['momentum_buffer'] = p.grad.clone()
        else:
            state['momentum_buffer'].mul_(group['momentum']).add_(p.grad, alpha=1 - group['dampening'])
        return state['momentum_buffer']

    def _sgd(self, group: dict[str, Any], params: list[Tensor]) -> None:
        buffers = [self.state[p].get('momentum_buffer') for p in params]
        sgd(
            params,
            [p.grad for p in params],
            buffers,
            has_sparse_grad=any(p.grad.is_sparse for p in params),
            nesterov=False,
            **{name: group[name] for name in ('weight_decay', 'momentum', 'lr', 'dampening', 'maximize')},
        )
        if group['momentum'] != 0:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]['momentum_buffer'] = buffer

    def _adam(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )
        states = [self.state[p] for p in params]
        first, second, steps = ([state[name] for state in states] for name in ('exp_avg', 'exp_avg_sq', 'step'))
        options = {name: group[name] for name in ('lr', 'weight_decay', 'eps', 'maximize')}
        options |= {'beta1': group['betas'][0], 'beta2': group['betas'][1]}
        grads = [p.grad for p in params]
        if group['base'] == 'adamw':
            adamw(params, grads, first, second, [], steps, amsgrad=False, **options)
        else:
            lamb(params, grads, first, second, steps, **options)


def grassmann_groups(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """Return the groups of a model for :class:`RiemannianSGD`: all plain parameters, and one for each set of bases.

    Args:
        model: With any number of :class:`~clusterplug.heads.GrassmannHead` in it.
        **options: Of the groups of bases alone, such as ``lr``.

    Raises:
        ValueError: The model has no bases that are trained.

    Example:
        >>> from clusterplug.heads import GrassmannHead
        >>> [sorted(group) for group in grassmann_groups(GrassmannHead(16, 3, 2), lr=0.3)]
        [['lr', 'manifold', 'params', 'subspace_dim']]
    """
    groups, seen = [], set()
    for module in model.modules():
        weight = getattr(module, 'weight', None)
        if getattr(module, 'manifold', None) == 'grassmann' and weight.requires_grad and id(weight) not in seen:
            seen.add(id(weight))
            groups.append(dict(params=[weight], manifold='grassmann', subspace_dim=module.subspace_dim, **options))
    if not groups:
        raise ValueError(f'{type(model).__name__} has no bases to train: it needs a clusterplug.GrassmannHead')
    plain = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    return ([dict(params=plain)] if plain else []) + groups


def _check_options(options: dict[str, Any]) -> None:
    if not isinstance(options['lr'], Tensor):
        check_number(options['lr'], 'lr', 0)
    check_number(options['momentum'], 'momentum', 0)
    check_number(options['dampening'], 'dampening', 0, 1)
    check_number(options['weight_decay'], 'weight_decay', 0)
    check_number(options['eps'], 'eps', 0)
    check_count(options['reorthonormalize_every'], 'reorthonormalize_every', 0)
    check_choice(options['base'], 'base', _BASES)
    check_choice(options['retraction'], 'retraction', ('geodesic', 'qr'))
    if len(options['betas']) != 2:
        raise ValueError(f'betas must be two numbers, got {options["betas"]!r}')
    for beta in options['betas']:
        check_number(beta, 'betas', 0, 1)
    if options.get('nesterov'):
        raise ValueError('nesterov must be left out: RiemannianSGD has none')


def _check_grassmann_group(group: dict[str, Any]) -> None:
    check_choice(group['manifold'], 'manifold', ('grassmann',), ' or None')
    if group.get('subspace_dim') is None:
        raise ValueError("a group with manifold='grassmann' must have subspace_dim, the rows of each basis")
    dim = check_count(group['subspace_dim'], 'subspace_dim', 1)
    if group.get('weight_decay'):
        raise ValueError(
            f"weight_decay of a group with manifold='grassmann' must be 0, got {group['weight_decay']}; it has no "
            f'effect on a subspace'
        )
    params = [group['params']] if isinstance(group['params'], Tensor) else list(group['params'])
    group['params'] = params
    for p in params:
        if p.dim() != 2 or p.shape[0] % dim or p.shape[1] < dim:
            raise ValueError(
                f"weights of a group with manifold='grassmann' must be (K * subspace_dim, D), subspace_dim <= D, got "
                f'{tuple(p.shape)} for subspace_dim {dim}; put other parameters into a group of their own'
            )
