# SPDX-License-Identifier: Apache-2.0
"""Slices and whole volumes agree between two views, and hidden slices are predicted: one model."""

import torch
from torch import Tensor, nn

from clusterplug.pretraining._no_loss import NoLoss
from clusterplug.pretraining.features import image_features
from clusterplug.pretraining.masked_slice_model import MaskedSliceModel
from clusterplug.pretraining.multi_view_model import MultiViewModel
from clusterplug.registry import MODELS


@MODELS.register_module()
class ImageVolumeModel(MultiViewModel):
    """Train a backbone of pictures and an encoder of their sequence, without labels (image-volume).

    The backbone sees every slice of every view, ``neck`` brings its features to the width of the encoder. Slices are
    compared between views by ``head``, volumes (``encoder.embed``) by ``volume_head``, and hidden slices predicted from
    the others. "Slices" are those of a volume, the frames of a video, or any pictures in an order.

    Args:
        backbone: as in :class:`~clusterplug.pretraining.MultiViewModel`, of pictures.
        encoder: config or module of :class:`~clusterplug.layers.InterSliceEncoder`.
        neck: config or module from (N, C) of the backbone to (N, ``encoder.channels``); None: they are equal.
        head: config or module of :class:`~clusterplug.heads.PrototypeHead`, of slices; None with ``intra_weight=0``.
        volume_head: likewise, of volumes; None with ``inter_weight=0``.
        loss: config or module of :class:`~clusterplug.losses.IntraInterLoss`; its weights of 0 are the published
            stages.
        mask_ratio: share of hidden slices of each volume.
        freeze_backbone: leave the backbone as it is, in evaluation mode (the published second stage).
        data_preprocessor, init_cfg: as in :class:`~clusterplug.pretraining.MultiViewModel`.

    Inputs are V views of B tensors (S, 3, H, W) (:class:`~clusterplug.datasets.transforms.SliceViews`); volumes of
    fewer slices are padded, and padding is ignored, also in the backbone's batch norm.

    ``'predict'`` gives ``features``, the mean over the mixed slices, ``embeddings``, of unit length, and
    ``slice_features``, the mean over the slices of what the backbone gives, each (1, C), of view 0.

    Raises:
        ValueError: one view in training; views of different numbers of slices; a term with a weight and no head.

    Source: Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
    Clustering", AAAI 2023, arXiv 2212.01893; official code
    duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive (no license), not copied. **Differs from the
    authors' code**: one training with three terms instead of three stages; features of the last stage of the backbone
    instead of those of all stages, the last one twice.

    Example:
        >>> model = ImageVolumeModel(  # doctest: +SKIP
        ...     backbone=dict(type='clusterplug.TorchvisionBackbone', name='resnet18'),
        ...     encoder=dict(type='clusterplug.InterSliceEncoder', channels=512, depth=2),
        ...     head=dict(type='clusterplug.PrototypeHead', in_channels=512, num_prototypes=100),
        ...     volume_head=dict(type='clusterplug.PrototypeHead', in_channels=512, num_prototypes=8),
        ... )
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        encoder: dict | nn.Module,
        neck: dict | nn.Module | None = None,
        head: dict | nn.Module | None = None,
        volume_head: dict | nn.Module | None = None,
        loss: dict | nn.Module | None = None,
        mask_ratio: float = 0.1,
        freeze_backbone: bool = False,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone, head, NoLoss(), data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.loss_function = _built(dict(type='clusterplug.IntraInterLoss') if loss is None else loss)
        self.neck, self.volume_head = _built(neck), _built(volume_head)
        self.slices = MaskedSliceModel(_built(encoder), mask_ratio)
        weights = self.loss_function.weights
        for term, part, name in (('intra', self.head, 'head'), ('inter', self.volume_head, 'volume_head')):
            if weights[term] and part is None:
                raise ValueError(f'{name} must be given, as {term}_weight is {weights[term]:g}; or set that to 0')
        self.freeze_backbone = bool(freeze_backbone)
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    @property
    def encoder(self) -> nn.Module:
        """The encoder of the sequence, a part of ``slices``."""
        return self.slices.encoder

    def train(self, mode: bool = True) -> 'ImageVolumeModel':
        """As of any module; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if getattr(self, 'freeze_backbone', False):
            self.backbone.eval()
        return self

    def extract_features(self, inputs: dict, backbone: nn.Module | None = None) -> list[Tensor]:
        """Embeddings (B, S, C) of the slices of each view, 0 where there is padding."""
        return self._slices(inputs, inputs['views'])[1]

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """The terms of the loss."""
        views, mask = inputs['views'], _mask(inputs)
        if self.training and len(views) < 2:
            raise ValueError(f'training needs at least 2 views of each volume, got {len(views)}')
        heads = {'intra': self.head, 'inter': self.volume_head}
        if self.training:
            for head in heads.values():
                if hasattr(head, 'normalize_'):
                    head.normalize_()
        rows, slices = self._slices(inputs, views)
        weights, given = self.loss_function.weights, {}
        if weights['intra']:
            scores = self.head(torch.cat(rows)).split([len(each) for each in rows])
            given['slice_scores'] = [_filled(each, mask) for each in scores]
        if weights['inter']:
            volumes = self.encoder.embed(torch.cat(slices), mask.repeat(len(views), 1))
            given['volume_scores'] = list(self.volume_head(volumes).chunk(len(views)))
        if weights['mask']:
            given['mask_loss'] = self.slices(torch.cat(slices), mask.repeat(len(views), 1))
        return self.loss_function(**given, mask=mask)

    @torch.no_grad()
    def predict(self, inputs: dict, data_samples: list | None = None) -> list:
        """Samples with ``features``, ``embeddings`` and ``slice_features``."""
        from mmengine.structures import BaseDataElement

        features, embeddings, plain = self._of_volumes(inputs)
        if data_samples is None:
            data_samples = [BaseDataElement() for _ in range(len(features))]
        for n, sample in enumerate(data_samples):
            parts = dict(features=features, embeddings=embeddings, slice_features=plain)
            sample.set_data({name: value[n : n + 1] for name, value in parts.items()})
        return data_samples

    @torch.no_grad()
    def embed_samples(self, inputs: dict, data_samples: list | None = None) -> Tensor:
        """Embeddings (B, C) of whole volumes, of view 0; for ``ClusterRefreshHook(features=...)``."""
        return self._of_volumes(inputs)[1]

    def _of_volumes(self, inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
        mask = _mask(inputs)
        count = mask.sum(1, keepdim=True).clamp(min=1)
        (plain,), (x,) = self._slices(inputs, inputs['views'][:1], neck=False)
        mixed = self.encoder(x, mask).sum(1) / count
        return mixed, nn.functional.normalize(mixed, dim=1), _filled(plain, mask).sum(1) / count

    def _slices(self, inputs: dict, views: list[Tensor], neck: bool = True) -> tuple[list, list]:
        """Embeddings of the slices of each view without padding (P, C), before the neck on demand, and with it."""
        mask = _mask(inputs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            plain = image_features(self.backbone, [view[mask] for view in views])
        rows = plain
        if self.neck is not None:
            rows = list(self.neck(torch.cat(plain)).split([len(each) for each in plain]))
        width = self.encoder.channels
        if rows[0].shape[1] != width:
            raise ValueError(
                f'slices must have the {width} channels of the encoder, got {rows[0].shape[1]}; give a neck'
            )
        return (rows if neck else plain), [_filled(each, mask) for each in rows]


def _built(part: dict | nn.Module | None) -> nn.Module | None:
    return MODELS.build(part) if isinstance(part, dict) else part


def _mask(inputs: dict) -> Tensor:
    if 'mask' not in inputs:
        raise ValueError('inputs must hold volumes, tensors (S, 3, H, W); put SliceViews into the pipeline')
    return inputs['mask']


def _filled(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, S, C) of the rows (P, C) where mask (B, S) is True, 0 elsewhere."""
    return rows.new_zeros(*mask.shape, rows.shape[1]).index_put((mask,), rows)
