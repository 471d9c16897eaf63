# SPDX-License-Identifier: Apache-2.0
"""The symmetric contrastive loss between texts and videos, over the batches of all ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_points
from clusterplug.core.distributed import gather_ranks, rank
from clusterplug.core.numerics import no_autocast, working_dtype


def symmetric_contrast(text: Tensor, video: Tensor, logit_scale: Tensor) -> Tensor:
    r"""Cross entropy of each text against all videos and of each video against all texts, averaged.

    .. math:: L = \frac{1}{2B} \sum_i -\log \frac{e^{s\, t_i v_i}}{\sum_j e^{s\, t_i v_j}}
              -\log \frac{e^{s\, t_i v_i}}{\sum_j e^{s\, t_j v_i}}

    with unit vectors t, v and s = exp(logit_scale), in fp32. With several ranks, the sums over j run over the pairs of
    all ranks, and those over i over this rank's pairs: the mean of the ranks' losses is the loss of one process with
    the whole batch, and the gradients that DDP averages are its gradients.

    Args:
        text: (B, D) features of any length, the same B on every rank.
        video: (B, D); pair i is text i and video i.
        logit_scale: Scalar, logarithm of the scale.

    Returns:
        Scalar loss.

    Raises:
        TypeError: Features are not floating.
        ValueError: Shapes differ.

    Source:
        Radford et al., "CLIP", 2021; Zhao et al., "CenterCLIP", SIGIR 2022.

        **Differs from the authors' code**: gradients flow to the features of every rank, theirs only to the own ones,
        so that theirs shrink with the number of ranks.

    Example:
        >>> eye = torch.eye(2)
        >>> round(symmetric_contrast(eye, eye, torch.tensor(1.0)).item(), 4)
        0.0639
    """
    check_points(text, 'text')
    check_points(video, 'video')
    if text.shape != video.shape or text.dim() != 2:
        raise ValueError(
            f'text and video must both have shape (pairs, channels), got {tuple(text.shape)} and {tuple(video.shape)}'
        )
    with no_autocast(text):
        dtype = working_dtype(text.dtype)
        text, video = F.normalize(text.to(dtype), dim=-1), F.normalize(video.to(dtype), dim=-1)
        scale = logit_scale.to(dtype).exp()
        everything = gather_ranks(torch.cat([text, video], 1)).flatten(0, 1)
        texts, videos = everything.chunk(2, 1)
        targets = torch.arange(len(text), device=text.device) + len(text) * rank()
        forward = F.cross_entropy(scale * text @ videos.mT, targets)
        return 0.5 * (forward + F.cross_entropy(scale * video @ texts.mT, targets))
