# SPDX-License-Identifier: Apache-2.0
"""Merging whose coefficients, and whose mask over all parameters, are learned on inputs without labels."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.numerics import recording, working_dtype
from clusterplug.functional import concrete_mask
from clusterplug.fusion._fitting import Guard, History, Problem
from clusterplug.fusion.task_vectors import added_to, check_vectors, is_statistic, like_state_of, sum_of

__all__ = ['AdaMerging', 'ConcreteMerging', 'FusionStep']


class FusionStep(NamedTuple):
    """One line of the history of a fit.

    Attributes:
        phase: 'meta' or 'adapt'.
        step: Number of the step in it, from 0.
        loss: Of the batch, summed over tasks.
        held_out: Loss of the held-out batches where they were looked at, else NaN.
    """

    phase: str
    step: int
    loss: float
    held_out: float


class AdaMerging(nn.Module):
    r"""Task arithmetic with coefficients that are trained to make the merged model certain of its predictions.

    .. math:: \theta = \theta_0 + \sum_t \lambda_t^l \tau_t^l, \qquad
              L = \sum_t \mathrm{mean}_x \, H(\mathrm{softmax}(f_\theta(x)))

    with one lambda per task, or per task and tensor l. The inputs need no labels, but they are those of the test:
    report results as transductive. A low entropy is no high accuracy; :meth:`fit` therefore stops when a held-out batch
    gets worse, and returns to its best step.

    Args:
        base: State dict of the common start. Neither it nor the vectors are changed.
        vectors: Task vectors, as for :func:`~clusterplug.fusion.task_arithmetic`.
        level: 'task' or 'layer'.
        init: lambda at the start.
        clamp: Hold lambda in 0 .. 1, as the authors do.

    The state dict holds the coefficients alone.

    Raises:
        ValueError: As :func:`~clusterplug.fusion.task_arithmetic`.

    Source: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024 (arXiv 2310.02575);
    tanganke/fusion_bench (MIT). **Differs from the authors' code**: the start is never changed in place; early
    stopping.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> tuned = {name: value + 1 for name, value in net.state_dict().items()}
        >>> from clusterplug.fusion import TaskVector
        >>> merging = AdaMerging(net.state_dict(), [TaskVector(net.state_dict(), tuned)], init=1.0)
        >>> bool(torch.allclose(merging.merged()['weight'], tuned['weight']))
        True
    """

    levels = ('task', 'layer')

    def __init__(
        self,
        base: Mapping[str, Tensor],
        vectors: Sequence[Mapping[str, Tensor]],
        *,
        level: str = 'task',
        init: float = 0.3,
        clamp: bool = True,
    ):
        super().__init__()
        self.names = check_vectors(base, vectors)
        self.level, self.clamp = check_choice(level, 'level', self.levels), clamp
        self.init = check_number(init, 'init')
        self.num_tasks = len(vectors)
        self._rest = {name: value for name, value in base.items() if name not in self.names}
        self._empty = like_state_of(base)
        for k, name in enumerate(self.names):
            # names of buffers have no dots
            self.register_buffer(f'base_{k}', base[name].detach().clone(), persistent=False)
            dtype = working_dtype(*(vector[name].dtype for vector in vectors))  # half would round lambda
            stack = torch.stack([vector[name].detach().to(base[name].device, dtype) for vector in vectors])
            self.register_buffer(f'vectors_{k}', self._stored(stack), persistent=False)
        rows = len(self.names) if level == 'layer' else 1
        self.coefficients = nn.Parameter(torch.full((rows, self.num_tasks), self.init))

    def _stored(self, stack: Tensor) -> Tensor:
        return stack

    def _sum(self, k: int) -> Tensor:
        """Weighted sum of the task vectors of a tensor."""
        factors = self.coefficients[k if self.level == 'layer' else 0]
        vectors = getattr(self, f'vectors_{k}')
        return torch.tensordot(factors.to(vectors.dtype), vectors, 1)

    def _changes(self) -> list[Tensor]:
        return [self._sum(k) for k in range(len(self.names))]

    def merged(self) -> dict[str, Tensor]:
        """Return the merged tensors with gradients, for ``torch.func.functional_call``."""
        found = zip(self.names, self._changes(), strict=True)
        return {name: sum_of(name, getattr(self, f'base_{k}'), change) for k, (name, change) in enumerate(found)}

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """Return the state dict of the merged model: integer buffers and what no vector changes are the base's."""
        state = copy.copy(self._empty)
        state.update({name: value.clone() for name, value in self.merged().items()})
        state.update(added_to(self._rest, {}))
        return state

    @recording()
    def fit(
        self,
        model: nn.Module | Sequence[nn.Module],
        data: Sequence[Iterable],
        *,
        steps: int = 1000,
        lr: float = 1e-3,
        objective: str | Callable[[Tensor, Any], Tensor] = 'entropy',
        predict: Callable | None = None,
        held_out: Sequence[Any] | None = None,
        check_every: int = 50,
        patience: int = 5,
        on_step: Callable[[FusionStep], None] | None = None,
    ) -> list[FusionStep]:
        """Train the coefficients.

        Args:
            model: The network, or one per task (each with its own head: what is not merged stays theirs). It is not
                changed; it runs in evaluation mode.
            data: For each task an iterable of batches, read again and again: a tensor, or a tuple whose first entry is
                the input.
            steps: Adam steps; each sees one batch of each task.
            lr: Of Adam.
            objective: 'entropy'; 'cross_entropy', with the labels in the second entry of a batch (to test the
                machinery); or ``(logits, batch) -> loss``.
            predict: ``(task, call, batch) -> logits (N, C, ...)`` where ``call(*args, **kwargs)`` runs the merged
                model; default ``call(input)``.
            held_out: One batch per task for early stopping; None = the first batch of each iterable.
            check_every: Steps between two looks at them.
            patience: Looks without improvement after which it stops.
            on_step: Called with each line of the history as it is made, to show progress.

        Returns:
            The history. The parameters are those of the best look.

        Raises:
            ValueError: A wrong number of iterables, an empty one, a loss that is not finite.
        """
        problem = Problem(self, model, data, objective, predict, held_out)
        guard = Guard(problem, check_every, patience)
        history = History(on_step)
        self._train_coefficients(problem, guard, steps, lr, history)
        guard.restore()
        return list(history)

    def _train_coefficients(self, problem: Problem, guard: Guard, steps: int, lr: float, history: History) -> None:
        optimizer = torch.optim.Adam([self.coefficients], lr=check_number(lr, 'lr', above=0))
        for step in range(check_count(steps, 'steps', 0)):
            loss = problem.step(optimizer)
            self._clamp()
            history.append(FusionStep('adapt', step, loss, guard.look(step)))
            if guard.exhausted:
                break

    def _clamp(self) -> None:
        if self.clamp:
            with torch.no_grad():
                self.coefficients.clamp_(0.0, 1.0)


class ConcreteMerging(AdaMerging):
    r"""Merging through one learned mask over all parameters, shared by all tasks.

    .. math:: \theta = \theta_0 + \frac{m}{\mathrm{mean}(m)} \odot \sum_t \lambda_t \tau_t, \qquad
              m = \mathrm{sigmoid}((\log u - \log(1 - u) + x) / \tau)

    Entries of the task vectors that interfere are removed for all tasks, judged by what the merged model predicts. The
    mean is that of each tensor, so a mask that is equal everywhere is plain task arithmetic. Running statistics of
    BatchNorm are merged without a mask. With ``level='none'``
    lambda is fixed and the sum is made once, so that a step is one product over the parameters, whatever the number of
    tasks.

    Args:
        base: As for :class:`AdaMerging`.
        vectors: As there.
        level: 'none' (Concrete task arithmetic), 'task' or 'layer' (Concrete AdaMerging).
        init: lambda.
        clamp: As there.
        temperature: Of the mask.
        init_logit: x at the start; 0 is a probability of a half everywhere.
        seed: Of the draws.

    The state dict holds the coefficients, the logits of the mask by name, and the state of the draws.

    Source: Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion", 2023
    (arXiv 2312.06173), algorithm 1; official code tanganke/subspace_fusion (no license file), port
    tanganke/fusion_bench (MIT).

    **Differs from the authors' code**: the start is never changed in place; masks are in the state dict; the merged
    model is that of the mask's mean (sigmoid(x)) instead of one more draw; early stopping.
    """

    levels = ('none', 'task', 'layer')

    def __init__(
        self,
        base: Mapping[str, Tensor],
        vectors: Sequence[Mapping[str, Tensor]],
        *,
        level: str = 'none',
        init: float = 0.3,
        clamp: bool = True,
        temperature: float = 0.5,
        init_logit: float = 0.0,
        seed: int = 0,
    ):
        self._fixed = init if level == 'none' else None
        super().__init__(base, vectors, level=level, init=init, clamp=clamp)
        self.temperature = check_number(temperature, 'temperature', above=0)
        init_logit = check_number(init_logit, 'init_logit')
        self.logits = nn.ParameterList(
            torch.full_like(getattr(self, f'base_{k}'), init_logit, dtype=torch.float32) for k in range(len(self.names))
        )
        if level == 'none':
            self.coefficients.requires_grad_(False)
        self.seed = check_count(seed, 'seed')
        self._generators: dict[torch.device, torch.Generator] = {}
        self._masks: list[Tensor] | None = None

    def _stored(self, stack: Tensor) -> Tensor:
        return stack if self._fixed is None else stack.sum(0, keepdim=True) * self._fixed

    def _sum(self, k: int) -> Tensor:
        return super()._sum(k) if self._fixed is None else getattr(self, f'vectors_{k}')[0]

    def get_extra_state(self) -> dict[str, Any]:
        return {'names': self.names, 'draws': {str(d): g.get_state() for d, g in self._generators.items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state['names'] != self.names:
            raise ValueError('the masks must be of a model with the same parameters in the same order')
        for device, draws in state['draws'].items():
            self._generator(torch.device(device)).set_state(draws)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def draw(self) -> None:
        """Draw the masks that :meth:`merged` uses in training mode from now on."""
        self._masks = [concrete_mask(x, self.temperature, self._generator(x.device)) for x in self.logits]

    def masks(self) -> dict[str, Tensor]:
        """Return the drawn masks in training mode, their probabilities sigmoid(x) in evaluation mode."""
        if self.training:
            if self._masks is None:
                self.draw()
            return dict(zip(self.names, self._masks, strict=True))
        return {name: torch.sigmoid(x) for name, x in zip(self.names, self.logits, strict=True)}

    def _changes(self) -> list[Tensor]:
        masks = self.masks().values()
        tiny = torch.finfo(torch.float32).tiny
        return [
            self._sum(k)
            if is_statistic(name)
            else self._sum(k) * (mask / mask.mean().clamp(min=tiny)).to(getattr(self, f'vectors_{k}').dtype)
            for k, (name, mask) in enumerate(zip(self.names, masks, strict=True))
        ]

    def mask_statistics(self) -> dict[str, float]:
        """Return the mean probability of the mask of each tensor."""
        return {name: float(torch.sigmoid(x.detach()).mean()) for name, x in zip(self.names, self.logits, strict=True)}

    @recording()
    def fit(
        self,
        model: nn.Module | Sequence[nn.Module],
        data: Sequence[Iterable],
        *,
        steps: int = 1000,
        lr: float = 1e-3,
        objective: str | Callable[[Tensor, Any], Tensor] = 'entropy',
        predict: Callable | None = None,
        held_out: Sequence[Any] | None = None,
        check_every: int = 50,
        patience: int = 5,
        on_step: Callable[[FusionStep], None] | None = None,
        meta_steps: int = 2000,
        inner_lr: float = 1.0,
    ) -> list[FusionStep]:
        """Train the mask (``meta_steps``), then, at levels with coefficients, these (``steps``) under the final mask.

        In a meta step the coefficients restart at ``init``, make one Adam step of ``inner_lr`` (about 1 an entry, as
        the authors do it), and the mask makes one of ``lr`` on another batch. All else as :meth:`AdaMerging.fit`.
        """
        problem = Problem(self, model, data, objective, predict, held_out)
        guard = Guard(problem, check_every, patience)
        self.train()
        outer = torch.optim.Adam(self.logits.parameters(), lr=check_number(lr, 'lr', above=0))
        inner = torch.optim.Adam([self.coefficients], lr=check_number(inner_lr, 'inner_lr', above=0))
        history = History(on_step)
        for step in range(check_count(meta_steps, 'meta_steps', 0)):
            if self.level != 'none':
                self._reset_coefficients()
                self.draw()
                problem.step(inner)
                self._clamp()
            self.draw()
            loss = problem.step(outer)
            history.append(FusionStep('meta', step, loss, guard.look(step)))
            if guard.exhausted:
                break
        guard.restore()
        self._masks = None
        self.eval()
        if self.level != 'none':
            self._reset_coefficients()
            guard = Guard(problem, check_every, patience)
            self._train_coefficients(problem, guard, steps, lr, history)
            guard.restore()
        return list(history)

    def _reset_coefficients(self) -> None:
        with torch.no_grad():
            self.coefficients.fill_(self.init)
