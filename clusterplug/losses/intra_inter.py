# SPDX-License-Identifier: Apache-2.0
"""Slices agree, volumes agree, hidden slices are predicted: the joint loss."""

from collections.abc import Sequence

from torch import Tensor, nn

from clusterplug.core.checks import check_mask, check_number
from clusterplug.losses.swav import SwAVLoss
from clusterplug.registry import MODELS


@MODELS.register_module()
class IntraInterLoss(nn.Module):
    r"""Cluster agreement of slices and of whole volumes between two views, and prediction of hidden slices.

    .. math:: L = \lambda_\text{intra} L_\text{slices} + \lambda_\text{inter} L_\text{volumes}
              + \lambda_\text{mask} L_\text{mask}

    Args:
        intra: Loss of lists of slice scores, config or module; default :class:`~clusterplug.losses.SwAVLoss`.
        inter: Loss of lists of volume scores; likewise.
        intra_weight: lambda of the slices.
        inter_weight: lambda of the volumes.
        mask_weight: lambda of the hidden slices.

    Shapes:
        ``slice_scores``: V tensors (B, S, K), one a view, or None; ``volume_scores``: V tensors (B, K'), or None;
        ``mask_loss``: 0-dim, of a :class:`~clusterplug.pretraining.MaskedSliceModel`, or None; ``mask`` (B, S) bool,
        True = a slice, False = padding: those slices are ignored.

    Returns of ``forward``:
        dict of ``loss_intra``, ``loss_inter``, ``loss_mask``, weighted: those whose input was given and whose weight is
        not 0.

    Raises:
        ValueError: A term with a weight and no input, or nothing at all.

    Few volumes and many prototypes: codes say little where K' is above the number of volumes of all ranks; take fewer
    prototypes, or a queue.

    Source: Nguyen et al., AAAI 2023, arXiv 2212.01893; official code
    duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive (no license), not copied. **Differs from the
    authors' code**: theirs trains in three stages, the last one with the loss of the volumes alone; here the terms are
    one loss, and weights of 0 give the stages.

    Example:
        >>> loss = IntraInterLoss(mask_weight=0.0)
        >>> sorted(loss([torch.randn(4, 6, 5)] * 2, [torch.randn(4, 3)] * 2))
        ['loss_inter', 'loss_intra']
    """

    def __init__(
        self,
        intra: nn.Module | dict | None = None,
        inter: nn.Module | dict | None = None,
        intra_weight: float = 1.0,
        inter_weight: float = 1.0,
        mask_weight: float = 1.0,
    ):
        super().__init__()
        self.intra, self.inter = (_built(each) for each in (intra, inter))
        self.weights = {
            'intra': check_number(intra_weight, 'intra_weight', 0),
            'inter': check_number(inter_weight, 'inter_weight', 0),
            'mask': check_number(mask_weight, 'mask_weight', 0),
        }
        if not any(self.weights.values()):
            raise ValueError('intra_weight, inter_weight and mask_weight must not all be 0: nothing would be trained')

    def forward(
        self,
        slice_scores: Sequence[Tensor] | None = None,
        volume_scores: Sequence[Tensor] | None = None,
        mask_loss: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = {'intra': slice_scores, 'inter': volume_scores, 'mask': mask_loss}
        missing = [name for name, weight in self.weights.items() if weight and given[name] is None]
        if missing:
            raise ValueError(
                f'{", ".join(missing)} has a weight and no input; give it, or set {missing[0]}_weight to 0'
            )
        losses = {}
        if self.weights['intra'] and slice_scores is not None:
            losses['loss_intra'] = self.weights['intra'] * self._of_slices(slice_scores, mask)
        if self.weights['inter'] and volume_scores is not None:
            losses['loss_inter'] = self.weights['inter'] * self.inter(list(volume_scores))
        if self.weights['mask'] and mask_loss is not None:
            losses['loss_mask'] = self.weights['mask'] * mask_loss
        return losses

    def _of_slices(self, slice_scores: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        for scores in slice_scores:
            if not isinstance(scores, Tensor) or scores.dim() != 3 or scores.shape[:2] != slice_scores[0].shape[:2]:
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f'slice_scores must be tensors (B, S, K) of one B and S, got {got}')
        if mask is None:
            return self.intra([scores.flatten(0, 1) for scores in slice_scores])
        check_mask(mask, slice_scores[0].shape[:2], slice_scores[0].device)
        # the number of slices is needed on the host: they become rows of one matrix without the padding
        return self.intra([scores[mask] for scores in slice_scores])


def _built(loss: nn.Module | dict | None) -> nn.Module:
    if loss is None:
        return SwAVLoss()
    return MODELS.build(loss) if isinstance(loss, dict) else loss
