# SPDX-License-Identifier: Apache-2.0
"""A softmax over clusters, started from centers, and its cross entropy with soft targets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.registry import MODELS

__all__ = ['ClusterSoftmaxHead']


@MODELS.register_module()
class ClusterSoftmaxHead(nn.Module):
    r"""Multinomial logistic regression over clusters: logits = W x + b.

    Args:
        in_channels: D.
        num_clusters: K.

    Input (..., D) gives logits (..., K). :meth:`init_centers` starts it from a first partition, W_k = c_k / \|c_k\|
    and b = 0; :meth:`loss` is its cross entropy with targets such as those of
    :func:`clusterplug.functional.cluster_target`, by log-softmax in fp32 at least: no log(0).

    Source: Ghasedi Dizaji et al., DEPICT, ICCV 2017, arXiv 1704.06327; herandy/DEPICT (no license file). **Differs
    from the authors' code**: the columns of W are the centers in both of its branches (one of theirs divides along
    the wrong axis).

    Example:
        >>> head = ClusterSoftmaxHead(2, 2)
        >>> head.init_centers(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> head(torch.tensor([[1.0, 0.5]])).tolist()
        [[1.0, 0.5]]
    """

    def __init__(self, in_channels: int, num_clusters: int):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        self.num_clusters = check_count(num_clusters, 'num_clusters', 1)
        self.fc = nn.Linear(self.in_channels, self.num_clusters)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (..., K) of ``x`` (..., D)."""
        return self.fc(x)

    @torch.no_grad()
    def init_centers(self, centers: Tensor) -> None:
        """Start from cluster centers (K, D): unit columns, no bias. A center of length 0 gives a column of zeros."""
        if tuple(centers.shape) != (self.num_clusters, self.in_channels):
            raise ValueError(
                f'centers must have shape {(self.num_clusters, self.in_channels)}, got {tuple(centers.shape)}; give '
                f'one for each cluster'
            )
        if not bool(torch.isfinite(centers).all()):
            raise ValueError('centers must be finite, got NaN or infinity; re-seed empty clusters first')
        self.fc.weight.copy_(F.normalize(centers.to(self.fc.weight), dim=-1))
        self.fc.bias.zero_()

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy of logits (..., K) with soft targets (..., K); 0 without rows.

        Its gradient with respect to a row of logits is softmax(logits) - target over the number of rows.
        """
        if logits.shape != target.shape:
            raise ValueError(f'target must have the shape of the logits {tuple(logits.shape)}, got '
                             f'{tuple(target.shape)}')  # fmt: skip
        with no_autocast(logits):
            log_p = logits.to(working_dtype(logits.dtype)).log_softmax(-1)
            rows = max(1, log_p[..., 0].numel())
            return -(target.detach().to(log_p.dtype) * log_p).sum() / rows
