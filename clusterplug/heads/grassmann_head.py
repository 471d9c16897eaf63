# SPDX-License-Identifier: Apache-2.0
"""A classifier whose classes are linear subspaces of the features."""

import math
import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.numerics import exact_products, keep_fp32, working_dtype
from clusterplug.functional import class_overlap, grassmann_logits, orthonormalize_bases
from clusterplug.registry import MODELS

__all__ = ['GrassmannHead']

# largest entry of S S^T - I that counts as rounding
_TOLERANCE = 1e-3


@MODELS.register_module()
class GrassmannHead(nn.Module):
    r"""The last layer of a classifier with an n-dimensional subspace for each class instead of a vector.

    .. math:: l_k = s \, \lVert S_k^\top x \rVert / \lVert x \rVert, \qquad S_k^\top S_k = I_n

    What a class spreads over inside its subspace costs no logit, so features of a class keep more of their spread, and
    transfer better. The bases are points of a Grassmann manifold: train them with
    :class:`~clusterplug.optim.RiemannianSGD` (by config: ``GrassmannOptimWrapperConstructor``). Any other optimizer
    takes them off it; that is noticed at the next switch between training and evaluation, repaired, and warned of.

    Args:
        in_channels: D, width of the features.
        num_classes: K.
        subspace_dim: n, 1 .. D. 1 is a softmax over \|cosines\|; with D all logits are the same, which is warned of.
        scale: s, the inverse temperature; fixed.
        channels_first: Features are (B, D, ...), as of a convolution, and logits (B, K, ...).
        bias: For losses that are no softmax. Logits are centered by what a random feature gets, s sqrt(n / D), and a
            learned bias per class is added (0 at the start, or what the host's initialization writes): a sigmoid of
            lengths alone would never be below a half.

    Shapes:
        (..., D) to (..., K); with ``channels_first`` (B, D, ...) to (B, K, ...). A sparse tensor of spconv keeps its
        sites. The state is ``fc.weight`` (K n, D), rows k n .. (k + 1) n - 1 the basis of class k, as in the official
        checkpoints, which load. A checkpoint that is not orthonormal is re-orthonormalized with a warning.

    The bases and the logits are fp32 at least, also in a model that was cast to another type. Features of zeros have
    logits 0; features with NaN have logits NaN.

    Raises:
        ValueError: n > D, other values out of range, a weight of another shape.

    Source: Wang, Li, Zhang, "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
    Representation", ICCV 2023 (arXiv 2308.01547); official code innerlee/GCR (Apache-2.0), ``gcr/grassmann_fc.py``.

    **Differs from the authors' code**: orthonormal from the constructor on, not only where ``init_weights`` is called;
    the optimizer finds the bases by the group's flag, not by an attribute of the tensor, which copies lose; dense and
    sparse features; a bias for sigmoid losses.

    Example:
        >>> head = GrassmannHead(64, num_classes=10, subspace_dim=4)
        >>> head(torch.randn(5, 64)).shape, head.fc.weight.shape
        (torch.Size([5, 10]), torch.Size([40, 64]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        subspace_dim: int = 8,
        scale: float = 25.0,
        *,
        channels_first: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        self.num_classes = self.out_channels = check_count(num_classes, 'num_classes', 1)
        self.subspace_dim = check_count(subspace_dim, 'subspace_dim', 1)
        if self.subspace_dim > self.in_channels:
            raise ValueError(
                f'subspace_dim must be at most in_channels, got {subspace_dim} dimensions in {in_channels} channels; '
                f'lower it, a quarter of the channels or less leaves room for the classes'
            )
        if self.subspace_dim == self.in_channels:
            warnings.warn(
                f'subspace_dim {subspace_dim} is all of in_channels, so that all logits are {scale} whatever comes in; '
                f'lower it',
                stacklevel=2,
            )
        self.scale = check_number(scale, 'scale', above=0)
        self.channels_first = channels_first
        self.fc = _Bases(self.num_classes, self.subspace_dim, self.in_channels)
        # Under this name, as initializations of hosts write the prior of a class into the bias of its last layer.
        self.bias = nn.Parameter(torch.zeros(self.num_classes)) if bias else None

    @property
    def bases(self) -> Tensor:
        """(K, D, n), a view of the weight."""
        return self.fc.bases()

    def init_weights(self) -> None:
        """Draw the bases anew; called by mmengine after the initialization of the host, which knows no subspaces."""
        self.fc.reset_parameters()

    def forward(self, x: Any) -> Any:
        if hasattr(x, 'replace_feature'):  # a sparse tensor of spconv
            return x.replace_feature(self._logits(x.features))
        if not self.channels_first:
            return self._logits(x)
        return self._logits(x.movedim(1, -1)).movedim(-1, 1)

    def _logits(self, x: Tensor) -> Tensor:
        if not self.fc.checked:
            self.fc.check()
        logits = grassmann_logits(x, self.bases, self.scale)
        if self.bias is None:
            return logits
        center = self.scale * math.sqrt(self.subspace_dim / self.in_channels)
        return logits + (self.bias - center).to(logits.dtype)

    def projector(self, index: int) -> Tensor:
        """(D, D) projection on the subspace of a class."""
        basis = self.bases[check_count(index, 'index', 0, self.num_classes - 1)]
        return basis @ basis.mT

    def coordinates(self, x: Tensor, index: int) -> Tensor:
        """(..., n) coordinates of normalized features (..., D) in the subspace of a class, to look inside it."""
        basis = self.bases[check_count(index, 'index', 0, self.num_classes - 1)]
        return torch.nn.functional.normalize(x.to(basis.dtype), dim=-1) @ basis

    def confusability(self) -> Tensor:
        """(K, K) overlap of the classes' subspaces, 0 to 1 (:func:`~clusterplug.functional.class_overlap`)."""
        return class_overlap(self.bases.detach())

    def extra_repr(self) -> str:
        return (
            f'in_channels={self.in_channels}, num_classes={self.num_classes}, subspace_dim={self.subspace_dim}, '
            f'scale={self.scale:g}, channels_first={self.channels_first}, bias={self.bias is not None}'
        )


_SomeBases = TypeVar('_SomeBases', bound='_Bases')


class _Bases(nn.Module):
    """The weight (K n, D). No ``nn.Linear``, which the initializations of hosts would find and overwrite."""

    manifold = 'grassmann'

    def __init__(self, num_classes: int, subspace_dim: int, in_channels: int):
        super().__init__()
        self.num_classes, self.subspace_dim = num_classes, subspace_dim
        self.weight = nn.Parameter(torch.empty(num_classes * subspace_dim, in_channels))
        self.checked = False
        self.reset_parameters()

    def bases(self) -> Tensor:
        return self.weight.unflatten(0, (self.num_classes, self.subspace_dim)).mT

    def reset_parameters(self) -> None:
        if self.weight.is_meta:
            return
        with torch.no_grad():
            nn.init.normal_(self.weight)
            self._orthonormalize(self.weight)

    def train(self: _SomeBases, mode: bool = True) -> _SomeBases:
        self.checked = False  # what an optimizer or an average made of it is looked at once
        return super().train(mode)

    def check(self) -> None:
        """Look whether the rows are orthonormal, and make them so; one synchronization at a switch of the mode."""
        inside = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if inside or self.weight.is_meta or not isinstance(self.weight, nn.Parameter):
            return  # what functional_call puts in its place is the caller's
        self.checked = True
        error = _deviation(self.weight, self.subspace_dim)
        if error > _TOLERANCE:
            self._warn(error, 'the bases of a GrassmannHead')
            with torch.no_grad():
                self._orthonormalize(self.weight)

    def _apply(self, fn, recurse=True):
        """Move with the model, but stay fp32 when it is cast: narrower numbers are no orthonormal basis."""
        return super()._apply(keep_fp32(fn), recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        key = prefix + 'weight'
        value = state_dict.get(key)
        if isinstance(value, Tensor) and value.shape == self.weight.shape and not value.is_meta:
            error = _deviation(value, self.subspace_dim)
            narrow = 2 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
            if error > _TOLERANCE:
                if error > narrow:
                    self._warn(error, f'the bases {key} of the checkpoint')
                state_dict[key] = self._orthonormalize(value.to(working_dtype(value.dtype), copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _orthonormalize(self, weight: Tensor) -> Tensor:
        rows = weight.unflatten(0, (self.num_classes, self.subspace_dim))
        fresh = orthonormalize_bases(rows.mT).mT
        rows.copy_(fresh)
        return weight

    @staticmethod
    def _warn(error: float, what: str) -> None:
        warnings.warn(
            f'{what} are not orthonormal (by {error:.2g}) and were re-orthonormalized. If training did this, its '
            f'optimizer or an average of weights left the manifold: use clusterplug.RiemannianSGD with '
            f'clusterplug.GrassmannOptimWrapperConstructor, or clusterplug.optim.grassmann_groups',
            stacklevel=4,
        )


def _deviation(weight: Tensor, dim: int) -> float:
    """Largest entry of S S^T - I over all classes; infinite if any is NaN."""
    rows = weight.detach().unflatten(0, (-1, dim)).float()
    with exact_products(rows):
        largest = float((rows @ rows.mT - torch.eye(dim, device=rows.device)).abs().max())
    return largest if largest == largest else math.inf
