# SPDX-License-Identifier: Apache-2.0
"""Contrast in the subspace that two classes share: any two classes may be a positive pair."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_device, check_number, check_points
from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.core.numerics import no_autocast, on_host, working_dtype
from clusterplug.functional import gated_similarity, info_nce
from clusterplug.registry import MODELS

PAIRINGS = ('arbitrary', 'identical', 'distinct')
_MIXING = (0x7FEB352D, 0x846CA68B)  # of a hash of 32 bits with little bias (triple32 of Wellons)


@MODELS.register_module()
class GatedContrastLoss(nn.Module):
    r"""Draw a partner class for every anchor, and contrast inside the channels that the gate of the two opens.

    For an anchor of class :math:`y_1` with partner :math:`y_2` the positives P are the keys of :math:`y_2`, the
    negatives N the keys of neither class; each positive is contrasted with the negatives alone:

    .. math:: L = \frac{1}{\sum_b |P_b|} \sum_b \sum_{p \in P_b} \log\Big(e^{S_{bp}} + \sum_{n \in N_b} e^{S_{bn}}\Big)
              - S_{bp}, \qquad S_{bn} = \cos(z_b \circ g_b,\ k_n \circ g_b) / \tau

    Everything runs in fp32 with autocast off, without host synchronization on devices.

    Args:
        gate: Module, config or function from ``(y1, y2)`` to (B, d) gates, such as
            :class:`~clusterplug.heads.ClassPairGate`.
        temperature: tau.
        pairing: ``'arbitrary'``: the classes of the batch in another order; ``'identical'``: its own class;
            ``'distinct'``: any other of the ``gate.num_classes`` classes, which may be absent from the batch; or a
            function from labels (B,) to partners (B,).
        normalize_in_subspace: False: the authors' form, see :func:`~clusterplug.functional.gated_similarity`.
        reduction: ``'pairs'``: mean over all positive pairs; ``'anchors'``: of each anchor, then over anchors that have
            one.
        binary_weight: Weight of a term mean(g (1 - g)) that pushes gates to 0 and 1.
        gather: Take keys from all ranks. The mean over ranks of loss and gradient is then that of one process with the
            joined batch and the same partners, also where ranks hold different numbers of samples.
        seed: Partners follow from it, the rank, and the number of the training step, which is saved with the model.

    Shapes:
        ``z`` (B, d) anchors; ``keys`` (N, d), by default ``z``; ``labels`` (B,) integers, below 0 = ignored;
        ``key_labels`` (N,), by default ``labels``. Where ``keys`` is ``z`` an anchor is not its own positive; with the
        other view of the same samples it may be, in ``'identical'``.

    Returns of ``forward``:
        0-dim tensor in the type of ``z``. 0 with a gradient path where there are no positives (on the CPU with a
        warning, once), and where there are no negatives (one class). Rows with NaN or infinity are ignored.

    Raises:
        ValueError, TypeError: Inputs or options that do not fit.

    Source: Wu et al., "Rethinking Positive Pairs in Contrastive Learning", arXiv 2410.18200; written from descriptions
        of
    erow/vitookit (``simlap.py``) and erow/FastSSL. **Differs from the authors' code**: normalized in the subspace; no
    anchor is its own positive; partners are drawn again in a resumed run as they would have been; ``binary_weight`` is
    reconstructed from secondary sources.

    Example:
        >>> loss = GatedContrastLoss(dict(type='ClassPairGate', num_classes=4, channels=8))
        >>> z, keys = torch.randn(12, 8), torch.randn(12, 8)
        >>> loss(z, keys, torch.arange(12) % 4).shape
        torch.Size([])
    """

    step: Tensor

    def __init__(
        self,
        gate: nn.Module | dict | Callable[[Tensor, Tensor], Tensor],
        temperature: float = 0.1,
        pairing: str | Callable[[Tensor], Tensor] = 'arbitrary',
        normalize_in_subspace: bool = True,
        reduction: str = 'pairs',
        binary_weight: float = 0.0,
        gather: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        self.gate = MODELS.build(gate) if isinstance(gate, dict) else gate
        if not callable(self.gate):
            raise TypeError(f'gate must be a module, a dict or a function of (y1, y2), got {type(gate).__name__}')
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.pairing = pairing if callable(pairing) else check_choice(pairing, 'pairing', PAIRINGS, ' or a function')
        if pairing == 'distinct' and getattr(self.gate, 'num_classes', 0) < 2:
            raise ValueError("pairing='distinct' needs a gate with num_classes of at least 2")
        self.normalize_in_subspace = normalize_in_subspace
        self.reduction = check_choice(reduction, 'reduction', ('pairs', 'anchors'))
        self.binary_weight = check_number(binary_weight, 'binary_weight', 0)
        self.gather, self.seed = gather, check_count(seed, 'seed')
        self._at_collapse: Tensor | None = None
        self._warned = False
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, keys: Tensor | None, labels: Tensor, key_labels: Tensor | None = None) -> Tensor:
        own = keys is None or keys is z
        keys = z if keys is None else keys
        self._check(z, keys, labels, key_labels)
        labels = labels.long()  # narrow types have no -1
        key_labels = labels if key_labels is None else key_labels.long()
        ranks, offset = (world_size() if self.gather else 1), 0
        partners = self.partners(labels)
        if self.training:
            self.step += 1
        if ranks > 1:
            keys, key_labels, offset = _from_all_ranks(keys, key_labels)
        with no_autocast(z):
            dtype = working_dtype(z.dtype, keys.dtype)
            # a row that is not finite would reach others through their denominators
            usable = [x.detach().isfinite().all(-1) for x in (z, keys)]
            z32, k32 = (x.to(dtype).masked_fill(~ok[:, None], 0.0) for x, ok in zip((z, keys), usable, strict=True))
            labels = labels.masked_fill(~usable[0], -1)
            key_labels = key_labels.masked_fill(~usable[1], -1)
            counted = (labels >= 0) & (partners >= 0)
            gates = self.gate(labels.clamp(min=0), partners.clamp(min=0)).to(dtype)
            scores = gated_similarity(z32, k32, gates, normalize_in_subspace=self.normalize_in_subspace)
            positive = (key_labels == partners[:, None]) & counted[:, None]
            negative = (key_labels >= 0) & (key_labels != partners[:, None]) & (key_labels != labels[:, None])
            if own:
                positive = positive & (torch.arange(len(k32), device=z.device) != offset + self._rows(z)[:, None])
            each = info_nce(scores, positive, negative, temperature=self.temperature)
            weights = positive.sum(1) if self.reduction == 'pairs' else positive.any(1)
            total = weights.sum()
            if not self._warned and on_host(z) and len(z) and not bool(total > 0):
                self._warned = True
                warnings.warn(
                    'no anchor of the batch has a key of its partner class, so that the loss is 0; use more samples of '
                    'each class a batch (ClassBalancedBatchSampler), or another pairing',
                    stacklevel=2,
                )
            with torch.no_grad():  # equal embeddings have equal scores: only the number of negatives counts
                flat_loss = ((1 + negative.sum(1)).to(dtype).log() * weights).sum()
                self._at_collapse = flat_loss / total.clamp(min=1)
            if ranks > 1:
                total = gather_ranks(total).sum() / ranks
            loss = (each * weights).sum() / total.clamp(min=1 / ranks)
            if self.binary_weight:
                flat = (gates * (1 - gates)).mean(1)
                loss = loss + self.binary_weight * (flat * counted).sum() / counted.sum().clamp(min=1)
        return loss.to(z.dtype)

    def log_values(self) -> dict[str, Tensor]:
        """``ln_k`` for the log: what the last call would have given with all embeddings equal, on this rank."""
        return {} if self._at_collapse is None else {'ln_k': self._at_collapse}

    @torch.no_grad()
    def partners(self, labels: Tensor) -> Tensor:
        """Return the partner class of each label (B,) in the present step; below 0 where the label is."""
        if self.pairing == 'identical':
            return labels
        if not isinstance(self.pairing, str):
            found = self.pairing(labels)
            if not isinstance(found, Tensor) or found.shape != labels.shape or found.is_floating_point():
                raise ValueError(f'pairing must give integer labels of shape {tuple(labels.shape)}, got {found!r}')
            return found
        draws = self._draws(len(labels), labels.device)
        if self.pairing == 'distinct':
            gate: Any = self.gate  # with num_classes, as looked at above
            others = gate.num_classes - 1
            return torch.where(labels >= 0, (labels + 1 + draws % others) % (others + 1), labels)
        # labeled samples first and in random order, as many as there are anchors with a label, in the order of these
        order = torch.where(labels >= 0, draws, draws.max() + 1 if len(draws) else draws).argsort()
        position = (labels >= 0).cumsum(0) - 1
        return torch.where(labels >= 0, labels[order][position.clamp(min=0)], labels) if len(labels) else labels

    def _draws(self, number: int, device: torch.device) -> Tensor:
        """(number,) integers of 31 bits that follow from seed, rank and step, without the host looking at the step."""
        x = self._arange(number, device) + (self.seed * 64 + rank()) * 0x1000193
        for salt in (self.step.to(device) * 0x9E3779B1, 0):
            x = (x ^ (x >> 16) ^ salt) & 0xFFFFFFFF
            for factor in _MIXING:
                x = (x * factor) & 0xFFFFFFFF
                x = x ^ (x >> 15)
        return x & 0x7FFFFFFF

    @staticmethod
    def _arange(number: int, device: torch.device) -> Tensor:
        return torch.arange(number, device=device)

    def _rows(self, z: Tensor) -> Tensor:
        return self._arange(len(z), z.device)

    @staticmethod
    def _check(z: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor | None) -> None:
        check_points(z, 'z', allow_empty=True)
        check_points(keys, 'keys', allow_empty=True)
        if z.dim() != 2 or keys.dim() != 2 or z.shape[1] != keys.shape[1]:
            raise ValueError(
                f'z and keys must have shapes (B, d) and (N, d), got {tuple(z.shape)}, {tuple(keys.shape)}'
            )
        check_device(keys, z.device, 'keys')
        if key_labels is None and len(keys) != len(z):
            raise ValueError(f'key_labels must be given where there are other keys than anchors, got {len(keys)} keys')
        for values, length, name in ((labels, len(z), 'labels'), (key_labels, len(keys), 'key_labels')):
            if values is None and name == 'key_labels':
                continue
            if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
                got = values.dtype if isinstance(values, Tensor) else type(values).__name__
                raise TypeError(f'{name} must be an integer tensor, got {got}; convert it with {name}.long()')
            if tuple(values.shape) != (length,):
                raise ValueError(f'{name} must have shape ({length},), got {tuple(values.shape)}')
            check_device(values, z.device, name)


def _from_all_ranks(keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Keys and labels of all ranks, filled up with label -1 to one number a rank, and where those of this rank
    begin."""
    counts = gather_ranks(torch.tensor(len(keys), device=keys.device))
    most = int(counts.max())
    padded = F.pad(keys, (0, 0, 0, most - len(keys)))
    labels = F.pad(key_labels.long(), (0, most - len(key_labels)), value=-1)
    return gather_ranks(padded).flatten(0, 1), gather_ranks(labels).flatten(), rank() * most


@MODELS.register_module()
class SimLAPLoss(GatedContrastLoss):
    """:class:`GatedContrastLoss` between views, for :class:`~clusterplug.pretraining.MultiViewModel`.

    Every view is once the anchors and every other view its keys; the terms are averaged. Labels are those of the data
    set or, where ``table`` is given, those that a :class:`~clusterplug.hooks.ClusterRefreshHook` writes there
    (``table='loss_function.table'``): pseudo-labels.

    Args:
        gate: As there.
        table: Config of a :class:`~clusterplug.memory.SampleTable` with a column ``label``.
        **options: Of :class:`GatedContrastLoss`.

    Raises:
        ValueError: Fewer than two views, or neither labels nor a table with ``sample_idx``.
    """

    def __init__(self, gate: nn.Module | dict | Callable, table: nn.Module | dict | None = None, **options):
        super().__init__(gate, **options)
        self.table: Any = MODELS.build(table) if isinstance(table, dict) else table

    # MultiViewModel calls it by these names; the arguments of the loss of two tensors would be other ones.
    def forward(  # type: ignore[override]
        self, embeddings: Sequence[Tensor], labels: Tensor | None = None, sample_idx: Tensor | None = None
    ) -> Tensor:
        views = list(embeddings)
        if len(views) < 2:
            raise ValueError(f'embeddings must hold at least two views, got {len(views)}')
        if self.table is not None:
            if sample_idx is None:
                raise ValueError('sample_idx must be given where labels come from a table; the data set has to name it')
            labels = self.table.read(sample_idx, 'label').to(views[0].device)
        if labels is None:
            raise ValueError('labels must be given: a data set with gt_label, or table= for pseudo-labels')
        forward = super().forward
        terms, flat = [], []
        for i, a in enumerate(views):
            for j, b in enumerate(views):
                if i != j:
                    terms.append(forward(a, b, labels))
                    flat.append(self.log_values()['ln_k'])
        self._at_collapse = torch.stack(flat).mean()
        return torch.stack(terms).mean()
