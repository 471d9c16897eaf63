# SPDX-License-Identifier: Apache-2.0
"""Finding the clustering losses of the model that a runner trains."""

import torch
from mmengine.model import is_model_wrapper

from clusterplug.losses import PointClusterLoss


def clustering_losses(model: torch.nn.Module, hook: str) -> dict[str, PointClusterLoss]:
    """The point-cluster losses of a model by name ('' for a wrapped ``clustering.loss``).

    Raises:
        ValueError: there is none, so the hook would do nothing.
    """
    if is_model_wrapper(model):
        model = model.module
    found = {name: module for name, module in model.named_modules() if isinstance(module, PointClusterLoss)}
    if not found:
        raise ValueError(
            f'{hook} found no PointClusterLoss in {type(model).__name__}; wrap the model with '
            f"type='clusterplug.WithClustering', or remove the hook"
        )
    return {'' if name == 'clustering.loss' else f'{name}.': module for name, module in found.items()}
