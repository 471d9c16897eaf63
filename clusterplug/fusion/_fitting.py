# SPDX-License-Identifier: Apache-2.0
"""What all trained mergings share: the objective over the tasks, and early stopping on held-out batches."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clusterplug.core.checks import check_choice, check_count
from clusterplug.fusion.task_vectors import is_statistic


class Problem:
    """The objective of a merging on the batches of all tasks."""

    def __init__(self, merging, model, data, objective, predict, held_out):
        self.merging, self.tasks = merging, merging.num_tasks
        self.models = [model] * self.tasks if isinstance(model, nn.Module) else list(model)
        if len(self.models) != self.tasks or len(data) != self.tasks:
            raise ValueError(
                f'model and data must be one per task vector, got {len(self.models)} models and {len(data)} iterables '
                f'for {self.tasks} vectors'
            )
        if not callable(objective):
            objective = {'entropy': _entropy, 'cross_entropy': _cross_entropy}[
                check_choice(objective, 'objective', ('entropy', 'cross_entropy'), ' or a callable')
            ]
        self.objective = objective
        self.predict = predict or (
            lambda task, call, batch: call(batch[0] if isinstance(batch, (tuple, list)) else batch)
        )
        self.batches = [_forever(each, k) for k, each in enumerate(data)]
        self.held_out = [next(each) for each in self.batches] if held_out is None else list(held_out)
        if len(self.held_out) != self.tasks:
            raise ValueError(f'held_out must be one batch per task, got {len(self.held_out)} for {self.tasks} tasks')

    def loss(self, batches: list) -> Tensor:
        # no gradient passes through running statistics
        state = {name: value.detach() if is_statistic(name) else value for name, value in self.merging.merged().items()}
        total = 0.0
        for task, (model, batch) in enumerate(zip(self.models, batches, strict=True)):

            def call(*args, model=model, **kwargs):
                return functional_call(model, state, args, kwargs)

            modes = [(module, module.training) for module in model.modules()]
            model.eval()
            try:
                total = total + self.objective(self.predict(task, call, batch), batch)
            finally:
                for module, mode in modes:
                    module.training = mode
        return total

    def step(self, optimizer: torch.optim.Optimizer) -> float:
        loss = self.loss([next(each) for each in self.batches])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f'the loss of the merged model must be finite, got {value}; lower lr, or check the inputs')
        params = [p for group in optimizer.param_groups for p in group['params']]
        for p, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
            p.grad = grad
        optimizer.step()
        for p in params:
            p.grad = None
        return value


class Guard:
    """Keeps the parameters that were best on the held-out batches, and says when to stop."""

    def __init__(self, problem: Problem, check_every: int, patience: int):
        self.problem = problem
        self.check_every = check_count(check_every, 'check_every', 1)
        self.patience = check_count(patience, 'patience', 1)
        self.exhausted, self.since = False, 0
        self.best, self.kept = math.inf, None
        self.look(-1)

    def look(self, step: int) -> float:
        """Loss of the held-out batches every ``check_every`` steps, else NaN."""
        if (step + 1) % self.check_every:
            return math.nan
        merging = self.problem.merging
        mode = merging.training
        merging.eval()
        with torch.no_grad():
            value = float(self.problem.loss(self.problem.held_out))
        merging.train(mode)
        if value < self.best:
            self.best, self.since = value, 0
            self.kept = [p.detach().clone() for p in merging.parameters()]
        else:
            self.since += 1
            self.exhausted = self.since >= self.patience
        return value

    def restore(self) -> None:
        """Look at the last step too, and return to the best."""
        self.look(-1)
        with torch.no_grad():
            for p, kept in zip(self.problem.merging.parameters(), self.kept or [], strict=True):
                p.copy_(kept)


class History(list):
    """Lines of a history; each is handed on as it is made."""

    def __init__(self, on_step: Callable | None):
        super().__init__()
        self._on_step = on_step

    def append(self, line) -> None:
        super().append(line)
        if self._on_step is not None:
            self._on_step(line)


def _forever(batches: Iterable, task: int):
    for _ in itertools.count():
        found = False
        for batch in batches:
            found = True
            yield batch
        if not found:
            raise ValueError(
                f'data of task {task} must yield batches again and again, got none; pass a list or a loader'
            )


def _entropy(logits: Tensor, batch: Any) -> Tensor:
    log_p = F.log_softmax(logits.float(), 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def _cross_entropy(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits.float(), batch[1])
