# SPDX-License-Identifier: Apache-2.0
"""Self-expression of all layers by one matrix of coefficients, and its structured norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_device, check_points
from clusterplug.core.numerics import exact_products, keep_fp32
from clusterplug.functional import self_expression
from clusterplug.registry import MODELS


@MODELS.register_module()
class SelfExpressionLoss(nn.Module):
    r"""How well n samples express each other, in the input and in every layer, by one trained matrix.

    .. math:: L = \sum_l \| \tilde C H_l - H_l \|_F^2, \qquad \tilde C = C - \operatorname{diag}(C)

    C (n, n) is a parameter that starts at 1e-8 everywhere; sample i is expressed by row i. The diagonal is ignored,
    so no sample expresses itself. After training, :meth:`affinity` gives
    :func:`~clusterplug.functional.top_coefficients`, and :meth:`structured_norm` is the second loss.

    Args:
        num_samples: n.
        normalize_layers: divide each term by :math:`\|H_l\|_F^2`, so that the layer with the most energy, the input as
            a rule, does not decide alone.

    Shapes:
        ``layers``: a list of (n, p_l) floating, the samples in one fixed order.

    Returns of ``forward``:
        0-dim tensor in fp32 at least.

    Raises:
        ValueError, TypeError: layers of another number of samples, on another device, or not floating.

    Source: Sindicic and Kopriva, arXiv 2504.18179, code lovro-sinda/LIHFSS-SVDSC (no license). **Differs from the
    authors' code**: the diagonal is removed (C = I is no solution then); 1e-12 under the root of the structured norm,
    whose gradient is NaN there where both coefficients are 0.

    Example:
        >>> loss = SelfExpressionLoss(3)
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> round(float(loss([x])), 3)
        14.0
    """

    def __init__(self, num_samples: int, normalize_layers: bool = False):
        super().__init__()
        self.num_samples = check_count(num_samples, 'num_samples', 2)
        self.normalize_layers = normalize_layers
        self.coefficients = nn.Parameter(torch.full((self.num_samples, self.num_samples), 1e-8))

    def _apply(self, fn, recurse=True):
        """Move with the model, but keep the coefficients in fp32 when it is cast."""
        return super()._apply(keep_fp32(fn), recurse)

    @property
    def coef(self) -> Tensor:
        """(n, n) coefficients with a zero diagonal, with a gradient."""
        return self.coefficients - torch.diag_embed(self.coefficients.diagonal())

    def forward(self, layers: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(layers, Tensor):
            layers = [layers]
        if len(layers) == 0:
            raise ValueError('layers must hold at least one tensor (n, p), got none')
        coef, terms = self.coef, []
        for number, layer in enumerate(layers):
            self._check(layer, f'layers[{number}]')
            with exact_products(layer):
                dtype = torch.promote_types(coef.dtype, layer.dtype)
                values = layer.to(dtype)
                term = (coef.to(dtype) @ values - values).square().sum()
                if self.normalize_layers:
                    energy = values.square().sum()  # with its gradient: features must not gain by shrinking
                    term = term / torch.where(energy > 0, energy, 1.0)
                terms.append(term)
        return sum(terms[1:], terms[0])

    def structured_norm(self, labels: Tensor) -> Tensor:
        r"""Return the penalty on coefficients between clusters.

        .. math:: \operatorname{tr}(Q^\top L_W Q) = \sum_{l_i \ne l_j} W_{ij}, \qquad
                  W = (|\tilde C| + |\tilde C|^\top)^{1/2}

        Args:
            labels: (n,) int64 clusters.

        Returns:
            0-dim tensor; coefficients within clusters get no gradient.
        """
        if labels.shape != (self.num_samples,):
            raise ValueError(f'labels must have shape ({self.num_samples},), got {tuple(labels.shape)}')
        check_device(labels, self.coefficients.device, 'labels')
        values = self.coef.abs()
        across = labels[:, None] != labels
        return torch.where(across, values + values.mT + 1e-12, 1.0).sqrt().mul(across).sum()

    @torch.no_grad()
    def solve_(self, layers: Tensor | Sequence[Tensor], ridge: float) -> None:
        """Set the coefficients to the minimum of the loss plus ``ridge`` times their squared norm."""
        layers = [layers] if isinstance(layers, Tensor) else list(layers)
        for number, layer in enumerate(layers):
            self._check(layer, f'layers[{number}]')
        if self.normalize_layers:
            norms = [layer.double().norm() for layer in layers]
            layers = [layer / torch.where(norm > 0, norm, 1.0).to(layer.dtype) for layer, norm in zip(layers, norms)]
        self.coefficients.copy_(self_expression(layers, ridge=ridge))

    def _check(self, layer: Tensor, name: str) -> None:
        check_points(layer, name)
        check_device(layer, self.coefficients.device, name)
        if layer.dim() != 2 or len(layer) != self.num_samples:
            raise ValueError(
                f'{name} must have shape ({self.num_samples}, p), all samples in their order, got {tuple(layer.shape)}'
            )

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}, normalize_layers={self.normalize_layers}'
