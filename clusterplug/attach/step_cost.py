# SPDX-License-Identifier: Apache-2.0
"""What the clustering loss adds to a training step, measured on the model itself."""

import time
from statistics import median
from typing import NamedTuple

import torch
from torch import nn


class StepCost(NamedTuple):
    """Medians in seconds.

    Attributes:
        plain: a training step without the clustering loss.
        clustered: the same step with it.
        share: (clustered - plain) / clustered.
    """

    plain: float
    clustered: float
    share: float


def measure_step_cost(model: nn.Module, data: dict, repeats: int = 7) -> StepCost:
    """Time forward and backward with and without the clustering loss, in turn, on one batch.

    Args:
        model: built by :func:`~clusterplug.attach.WithClustering`. Its weights stay; its memory is put back.
        data: a batch as a data loader of mmengine gives it.
        repeats: pairs of steps, after one pair of warm-up.
    """
    branch = model.clustering
    state = {name: value.clone() for name, value in branch.loss.memory.state_dict().items()}
    was_training = model.training
    model.train()
    times = {True: [], False: []}
    try:
        for number in range(repeats + 1):
            for active in (True, False):
                branch.enabled = active
                model.zero_grad(set_to_none=True)
                begin = _now()
                batch = model.data_preprocessor(data, True)
                losses = model(**batch, mode='loss')
                model.parse_losses(losses)[0].backward()
                if number:
                    times[active].append(_now() - begin)
    finally:
        branch.enabled = True
        model.zero_grad(set_to_none=True)
        branch.loss.memory.load_state_dict(state)
        model.train(was_training)
    plain, clustered = median(times[False]), median(times[True])
    return StepCost(plain, clustered, (clustered - plain) / clustered)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
