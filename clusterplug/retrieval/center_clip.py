# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP as a model for mm Runners."""

import torch
from mmengine.model import BaseModel
from torch import Tensor

from clusterplug.datasets.video.sample import VideoTextSample
from clusterplug.registry import MODELS
from clusterplug.retrieval.contrastive import symmetric_contrast
from clusterplug.retrieval.vector_sets import VectorSets


@MODELS.register_module()
class CenterCLIP(BaseModel):
    """Text-video retrieval with CLIP, whose image tower runs on segments of clustered tokens from one block on.

    Without ``clustering`` in the encoders this is the model of CLIP4Clip, with the test frames of CenterCLIP.

    Args:
        encoders: Config of :class:`~clusterplug.retrieval.TransformersEncoders` or another.
        head: Config of :class:`~clusterplug.retrieval.MeanPooling` (default) or
            :class:`~clusterplug.retrieval.SequenceTransformer`.
        scale_range: Least and largest logarithm of the scale; it is brought back into the range before each
            use. Defaults to (0.1, 4.6052).
        vectors: Arguments of :class:`~clusterplug.retrieval.VectorSets`: the loss also trains several
            vectors for each text and video, which :meth:`encode_text_vectors` and :meth:`encode_video_vectors` return
            for an index. Predictions keep one feature each.
        data_preprocessor: Defaults to :class:`~clusterplug.retrieval.VideoTextPreprocessor`.
        init_cfg: As in mmengine.

    Raises:
        ValueError: ``scale_range`` is no range.

    Source:
        Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022.

        **Differs from the authors' code**: gradients of all ranks flow through the gathered features; each video of a
        test set is encoded once, with all its captions beside it.

    Example:
        >>> model = CenterCLIP(encoders=dict(type='clusterplug.FeatureEncoders', video_channels=8, text_channels=6))
        >>> mask = torch.ones(2, 4, dtype=torch.bool)
        >>> losses = model(dict(frames=torch.randn(2, 4, 8), frame_mask=mask, tokens=torch.randn(2, 6)), mode='loss')
        >>> sorted(losses)
        ['logit_scale', 'loss_contrast']
    """

    def __init__(
        self,
        encoders: dict,
        head: dict | None = None,
        scale_range: tuple[float, float] = (0.1, 4.6052),
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        vectors: dict | None = None,
    ):
        super().__init__(data_preprocessor or dict(type='clusterplug.VideoTextPreprocessor'), init_cfg)
        low, high = scale_range
        if not low < high:
            raise ValueError(f'scale_range must be a lower and a larger bound, got {scale_range}')
        self.scale_range = (float(low), float(high))
        self.encoders = MODELS.build(encoders)
        self.head = MODELS.build(head or dict(type='clusterplug.MeanPooling'))
        self.head.init_from_text(*self.encoders.text_blocks())
        self.trains_vectors, self.vectors = vectors is not None, VectorSets(**(vectors or {}))
        # mmengine loads what fits and only logs the rest: a model of another width would be tested with random weights.
        self.register_load_state_dict_pre_hook(_check_widths)

    def forward(self, inputs: dict, data_samples: list | None = None, mode: str = 'tensor'):
        """Losses, predictions or features.

        Args:
            inputs: ``frames`` (B, T, 3, H, W), ``frame_mask`` (B, T), ``tokens`` (N, L), as
                :class:`~clusterplug.retrieval.VideoTextPreprocessor` makes them; ``num_captions`` (B,) where videos
                have other numbers of captions than one.
            data_samples: One :class:`~clusterplug.retrieval.VideoTextSample` for each video.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            ``'loss'``: dict with ``loss_contrast`` and, with ``vectors``, ``loss_vectors``; ``'predict'``: the samples
            with their features; ``'tensor'``: text (N, E) and video (B, E) features.

        Raises:
            ValueError: An unknown mode, or several captions of a video in a loss.
        """
        if mode not in ('loss', 'predict', 'tensor'):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")
        frames, mask, tokens = inputs['frames'], inputs['frame_mask'], inputs['tokens']
        text, segments = self.encode_text(tokens), self.encoders.encode_video(frames, mask)
        video = self.head(*segments)
        if mode == 'tensor':
            return text, video
        if mode == 'predict':
            return self._predict(text, video, inputs, data_samples)
        if len(text) != len(video):
            raise ValueError(f'the loss needs one caption for each video, got {len(text)} for {len(video)}')
        scale = self.logit_scale()
        losses = dict(loss_contrast=symmetric_contrast(text, video, scale), logit_scale=scale.detach().exp())
        if self.trains_vectors:
            queries = self.vectors.encode_text(self.encoders, tokens, text)
            documents = self.vectors.encode_video(self.encoders, frames, mask, segments)
            losses['loss_vectors'] = self.vectors.weight * self.vectors.loss(*queries, *documents)
        return losses

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of texts (N, L) -> (N, E)."""
        return self.encoders.encode_text(tokens)

    def encode_video(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Features of videos (B, T, 3, H, W) with a mask (B, T) -> (B, E), of length one."""
        return self.head(*self.encoders.encode_video(frames, mask))

    def encode_text_vectors(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of texts (N, L) -> (N, K, E), and which are there (N, K)."""
        return self.vectors.encode_text(self.encoders, tokens)

    def encode_video_vectors(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of videos (B, T, 3, H, W) with a mask (B, T) -> (B, K, E), and which are there (B, K)."""
        return self.vectors.encode_video(self.encoders, frames, mask)

    def logit_scale(self) -> Tensor:
        """Logarithm of the scale, brought into its range."""
        scale = self.encoders.logit_scale
        with torch.no_grad():
            scale.clamp_(*self.scale_range)
        return scale

    def _predict(self, text: Tensor, video: Tensor, inputs: dict, samples: list | None) -> list[VideoTextSample]:
        counts = inputs.get('num_captions')
        counts = [len(text) // len(video)] * len(video) if counts is None else counts.tolist()
        samples = [VideoTextSample() for _ in counts] if samples is None else samples
        text = torch.nn.functional.normalize(text.float(), dim=-1)
        for sample, feature, texts in zip(samples, video, text.split(counts)):
            # not set_data: the number of captions is free
            sample.video_feature, sample.text_features = feature, texts
        return samples


def _check_widths(model: CenterCLIP, state: dict, prefix: str, *_) -> None:
    own = model.state_dict()
    wrong = [
        f'{name} {tuple(state[prefix + name].shape)} instead of {tuple(value.shape)}'
        for name, value in own.items()
        if prefix + name in state and state[prefix + name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f'the checkpoint must be of this model, got {len(wrong)} weights of other sizes ({"; ".join(wrong[:3])}); '
            f'use the config it was trained with'
        )
