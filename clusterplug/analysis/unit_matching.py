# SPDX-License-Identifier: Apache-2.0
"""Do two networks learn the same features? Their units compared, layer by layer, in one pass over a loader."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.analysis.unit_moments import UnitMoments
from clusterplug.analysis.unit_outputs import CHANNELS, LayerOutput, check_layers, layer_output, paired, tapped
from clusterplug.core.checks import check_choice, check_count
from clusterplug.functional import (
    cka_null,
    linear_cka,
    match_units,
    spectral_clustering,
    unit_mutual_information,
)

POOLS = ('positions', 'mean')


class UnitSummary(NamedTuple):
    """One pair of layers in numbers; means are over the live units of network A.

    Attributes:
        layer: name. units_a, units_b: numbers of units. dead_a, dead_b: units that never change.
        positions: number that all but ``null`` and ``p_value`` are taken over.
        semi, bipartite: mean correlation of the two matchings. same_choice: share of units to which both give a unit of
            the same correlation. identity: mean correlation of unit i with unit i (NaN for other numbers of units).
        cka: unbiased linear CKA. null: 95 % quantile of CKA of shuffled pairs. p_value: of CKA, by these; both on the
            rows that were kept (``rows``).
    """

    layer: str
    units_a: int
    units_b: int
    dead_a: int
    dead_b: int
    positions: int
    semi: float
    bipartite: float
    same_choice: float
    identity: float
    cka: float
    null: float
    p_value: float
    rows: int


class UnitMatching:
    """Compare the units of two networks by the names of their layers.

    One pass over a loader collects, by forward hooks, second moments within and between the two layers (memory of the
    square of the number of units; no activations but ``num_rows`` rows drawn at random, for what moments cannot tell).
    All positions of maps, tokens and sparse tensors are samples.

    Args:
        model_a: Any module; an mm model (``test_step``) or one that is called with the batch.
        model_b: Likewise. Both see the same batches, without gradients and in evaluation mode; they are left in the
            mode they had.
        layers: Names of modules (as in ``named_modules()``) that both have, or pairs (name in A, name in B).
        pool: ``'positions'``, or ``'mean'``: the mean over the positions of a sample first. Needed for layers of
            different spatial size.
        channels: Where the units are in maps: ``'first'`` (B, C, H, W), ``'last'``, or ``'auto'``: behind the batch for
            4 and more dimensions, else last.
        num_rows: Rows that are kept for the null of CKA and for mutual information.
        forward: Function of (model, batch) instead of the default call.
        seed: Of the rows that are kept.

    Attributes:
        moments: {layer: :class:`UnitMoments`}; a layer is named as in A, or ``'a = b'``.
        rows: {layer: (rows of A, rows of B)}.
        examples: {layer: pair of outputs of the first batch}, for pictures.

    Raises:
        ValueError: A name that a model has not, no layers, an option out of range; in :meth:`fit` layers of different
            spatial size, a module called several times, an empty loader, NaN.

    Source: Li et al., "Convergent learning: Do different neural networks learn the same representations?", ICLR 2016,
    arXiv 1511.07543; official code YixuanLi/convergent_learning (GPL-3.0; reimplemented from the paper). **Differs
    from the authors' code**: one pass without stored activations; dead units are ignored instead of giving NaN;
    unbiased CKA with a null next to it; mutual information without a bias in the wrong unit.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        >>> batches = [torch.randn(50, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
        >>> matching = UnitMatching(net, net, ['1']).fit(batches)
        >>> matching.match('1')
        tensor([0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        layers: str | Sequence[str | tuple[str, str]],
        *,
        pool: str = 'positions',
        channels: str = 'auto',
        num_rows: int = 2048,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        seed: int = 0,
    ):
        layers = [layers] if isinstance(layers, str) else list(layers)
        pairs = [(each, each) if isinstance(each, str) else tuple(each) for each in layers]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f'layers must be names or pairs of names, at least one, got {layers!r}')
        self.pairs = {a if a == b else f'{a} = {b}': (a, b) for a, b in pairs}
        self.pool = check_choice(pool, 'pool', POOLS)
        self.channels = check_choice(channels, 'channels', CHANNELS)
        self.num_rows = check_count(num_rows, 'num_rows', 4)
        self.models = model_a, model_b
        for side, (model, which) in enumerate(zip(self.models, ('model_a', 'model_b'), strict=True)):
            check_layers(model, [pair[side] for pair in self.pairs.values()], which)
        self.forward = _call if forward is None else forward
        self.seed = check_count(seed, 'seed')
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.moments = {name: UnitMoments() for name in self.pairs}
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}
        self.examples: dict[str, tuple[LayerOutput, LayerOutput]] = {}
        self._keys: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(self.seed)

    def fit(self, loader: Iterable, max_batches: int | None = None) -> 'UnitMatching':
        """Pass over the loader once, or over its first ``max_batches``, after :meth:`reset`."""
        if max_batches is not None:
            check_count(max_batches, 'max_batches', 1)
        self.reset()
        for number, batch in enumerate(loader):
            if number == max_batches:
                break
            self.add(batch)
        if not any(each.count for each in self.moments.values()):
            raise ValueError('loader must give at least one batch, got none')
        return self

    @torch.no_grad()
    def add(self, batch: Any) -> None:
        """Take in one batch."""
        found = []
        for side, model in enumerate(self.models):
            modes = {module: module.training for module in model.modules()}
            model.eval()
            try:
                with tapped(model, [pair[side] for pair in self.pairs.values()]) as outputs:
                    self.forward(model, batch)
            finally:
                for module, mode in modes.items():
                    module.training = mode
            found.append(outputs)
        for name, pair in self.pairs.items():
            one, other = (
                layer_output(outputs[layer], layer, self.channels, self.pool)
                for outputs, layer in zip(found, pair, strict=True)
            )
            one, other = paired(one, other, name)
            try:
                self.moments[name].add(one.rows, other.rows)
            except ValueError as error:
                raise ValueError(f'layers {name}: {error}') from None
            self._keep(name, one.rows.float().cpu(), other.rows.float().cpu())
            if name not in self.examples:
                self.examples[name] = tuple(
                    each._replace(
                        rows=each.rows.cpu(), positions=None if each.positions is None else each.positions.cpu()
                    )
                    for each in (one, other)
                )

    def correlation(self, layer: str) -> Tensor:
        """Return (C, D) float64 correlations of the units of A and B."""
        return self._of(layer).correlation()

    def match(self, layer: str, method: str = 'bipartite', absolute: bool = False) -> Tensor:
        """Return the partner in B of every unit of A: see ``functional.match_units``."""
        return match_units(self.correlation(layer), method, absolute=absolute)

    def curve(self, layer: str, method: str = 'bipartite') -> Tensor:
        """Return the correlations of matched pairs, live units of A only, descending."""
        return (
            _matched(self.correlation(layer), self.match(layer, method), self._of(layer)).sort(descending=True).values
        )

    def cka(self, layer: str, biased: bool = False) -> float:
        """Return linear CKA over all positions."""
        return self._of(layer).cka(biased)

    def cka_null(self, layer: str, num_permutations: int = 100, biased: bool = False) -> tuple[float, Tensor]:
        """Return CKA of the rows that were kept, and that of the same rows shuffled."""
        self._of(layer)
        rows = self.rows[layer]
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='linear_cka is NaN')  # said by the number itself
            return float(linear_cka(*rows, biased=biased)), cka_null(
                *rows, num_permutations, biased=biased, generator=generator
            )

    def sparse_mapping(self, layer: str, penalty: float, **options) -> Tensor:
        """Return lasso weights (C, D) that predict standardized units of B from those of A."""
        return self._of(layer).sparse_mapping(penalty, **options)

    def mutual_information(self, layer: str, num_bins: int = 10) -> Tensor:
        """Return (C, D) mutual information in nats, from the rows that were kept; input of ``match_units`` too."""
        self._of(layer)
        return unit_mutual_information(*self.rows[layer], num_bins=num_bins)

    def groups(self, layer: str, num_groups: int) -> tuple[Tensor, Tensor]:
        r"""Cluster the units of both networks together: a group with units of both is a subspace that they share.

        Spectral clustering of all live units with the affinity \|c\|, within and between the networks.

        Returns:
            (C,) and (D,) int64 groups, -1 for dead units.
        """
        moments = self._of(layer)
        affinity, alive = moments.correlations().abs(), torch.cat(moments.live())
        check_count(num_groups, 'num_groups', 1, int(alive.sum()))
        labels = torch.full((len(alive),), -1)
        affinity = affinity[alive][:, alive]
        labels[alive.cpu()] = spectral_clustering(affinity, num_groups, affinity='precomputed').labels.cpu()
        return labels[: moments.widths[0]], labels[moments.widths[0] :]

    def summary(self, num_permutations: int = 100) -> list[UnitSummary]:
        """Return one row of numbers a layer."""
        return [self._summary(name, num_permutations) for name in self.pairs]

    def _summary(self, name: str, num_permutations: int) -> UnitSummary:
        moments = self._of(name)
        corr, (one, other) = moments.correlation(), moments.live()
        values = {method: _matched(corr, match_units(corr, method), moments) for method in ('semi', 'bipartite')}
        same = torch.isclose(values['semi'], values['bipartite'], rtol=0, atol=1e-9).double()
        square = corr.shape[0] == corr.shape[1]
        value, null = self.cka_null(name, num_permutations)
        return UnitSummary(
            layer=name, units_a=len(one), units_b=len(other), dead_a=int((~one).sum()), dead_b=int((~other).sum()),
            positions=moments.count, semi=float(values['semi'].mean()), bipartite=float(values['bipartite'].mean()),
            same_choice=float(same.mean()), identity=float(corr.diagonal()[one].mean()) if square else float('nan'),
            cka=moments.cka(), null=float(null.quantile(0.95)), rows=len(self.rows[name][0]),
            p_value=float('nan') if value != value else float(1 + (null >= value).sum()) / (1 + num_permutations),
        )  # fmt: skip

    def _of(self, layer: str) -> UnitMoments:
        check_choice(layer, 'layer', self.pairs)
        if not self.moments[layer].count:
            raise ValueError('there are no positions yet: call fit(loader) first')
        return self.moments[layer]

    def _keep(self, name: str, one: Tensor, other: Tensor) -> None:
        """A sample without bias of all rows so far: those with the smallest of random keys."""
        keys = torch.rand(len(one), generator=self._generator)
        if name in self.rows:
            keys = torch.cat([self._keys[name], keys])
            one, other = (torch.cat(each) for each in zip(self.rows[name], (one, other), strict=True))
        if len(keys) > self.num_rows:
            kept = keys.topk(self.num_rows, largest=False).indices.sort().values
            keys, one, other = keys[kept], one[kept], other[kept]
        self._keys[name], self.rows[name] = keys.clone(), (one.clone(), other.clone())


def _matched(corr: Tensor, partners: Tensor, moments: UnitMoments) -> Tensor:
    """Correlation of each live unit of A with its partner; 0 where none was left for it."""
    values = corr.gather(1, partners.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(partners >= 0, values, 0.0)[moments.live()[0]]


def _call(model: nn.Module, batch: Any) -> Any:
    """mm models take a batch by test_step; others its first part, or its keys as arguments."""
    if hasattr(model, 'test_step'):
        return model.test_step(copy.deepcopy(batch))  # results are written into its samples
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)
