# SPDX-License-Identifier: Apache-2.0
"""Several vectors for each text and video of CenterCLIP: which tokens, how many of them are kept, and their loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_number
from clusterplug.layers import MultiVectorClustering
from clusterplug.losses import LateInteractionLoss

_TOKENS = {'text': ('pooled', 'words'), 'video': ('pooled', 'patches')}


class VectorSets(nn.Module):
    """Unit token vectors of both encoders, clustered; no parameters.

    Args:
        text: Arguments of :class:`~clusterplug.layers.MultiVectorClustering` for texts, and ``tokens``:
            'pooled' (one feature a text, as the encoder was pretrained; default) or 'words'.
        video: Likewise for videos; ``tokens``: 'pooled' (one feature a frame or segment; default) or 'patches'
            (of all frames, or those that CenterCLIP's clustering kept; a second pass in training). Words and patches
            are not trained to match in CLIP: train before use. Without a number of clusters 8 are kept of a text and
            32 of a video.
        temperature: Of the late-interaction loss, whose scores are averaged over a text's vectors.
        weight: Of the loss.

    Raises:
        ValueError: Unknown tokens or options.

    Example:
        >>> sets = VectorSets(video=dict(num_clusters=4))
        >>> sets.video_layer.num_clusters, sets.text_layer.num_clusters
        (4, 8)
    """

    def __init__(
        self, text: dict | None = None, video: dict | None = None, temperature: float = 0.05, weight: float = 1.0
    ):
        super().__init__()
        self.text_layer, self.text_tokens = _layer(text, 'text', 8)
        self.video_layer, self.video_tokens = _layer(video, 'video', 32)
        self.loss = LateInteractionLoss(temperature, average=True)
        self.weight = check_number(weight, 'weight', 0)

    def encode_text(self, encoders: nn.Module, tokens: Tensor, pooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return vectors (N, K, E) of texts (N, L), and which are there (N, K); ``pooled`` as encoded before."""
        if self.text_tokens == 'words':
            vectors, mask = encoders.encode_words(tokens)
        else:
            pooled = encoders.encode_text(tokens) if pooled is None else pooled
            vectors, mask = pooled.unsqueeze(1), None
        return self.text_layer(F.normalize(vectors.float(), dim=-1), mask)

    def encode_video(
        self, encoders: nn.Module, frames: Tensor, mask: Tensor, pooled: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return vectors (B, K, E) of videos (B, T, 3, H, W), and which are there (B, K); ``pooled`` as before."""
        if self.video_tokens == 'patches':
            vectors, mask = encoders.encode_patches(frames, mask)
        else:
            vectors, mask = encoders.encode_video(frames, mask) if pooled is None else pooled
        return self.video_layer(F.normalize(vectors.float(), dim=-1), mask)


def _layer(options: dict | None, name: str, size: int) -> tuple[MultiVectorClustering, str]:
    options = dict(options or {})
    tokens = check_choice(options.pop('tokens', 'pooled'), f'vectors.{name}.tokens', _TOKENS[name])
    if not {'num_clusters', 'ratio', 'spacing'} & set(options):
        options['num_clusters'] = size
    return MultiVectorClustering(**options), tokens
