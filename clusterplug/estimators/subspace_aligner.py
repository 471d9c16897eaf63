# SPDX-License-Identifier: Apache-2.0
"""Match samples of two feature spaces that were trained apart, from known pairs."""

import warnings
from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.numerics import exact_products
from clusterplug.estimators._arrays import check_parameter, make_generator
from clusterplug.estimators._base import NotFittedError, SavedEstimator
from clusterplug.estimators._paired_factors import (
    canonical,
    factors,
    held_out_correlations,
    identity,
    joined,
    largest_gap,
    paired_shares,
    read_rows,
    scatter,
    triangle,
    varying,
)
from clusterplug.functional import linear_assignment, local_cka_scores

METHODS = ('affine', 'local_cka', 'cosine')
DIRECTIONS = ('y->x', 'x->y')


class SubspaceAligner(SavedEstimator):
    r"""Align two frozen feature spaces by known pairs (anchors), then match or retrieve unseen pairs.

    .. math:: C_x^{-1/2} C_{xy} C_y^{-1/2} = U S V^\top, \quad X^r = (X - \mu_x) C_x^{-1/2} U_k, \quad
              Y^r = (Y - \mu_y) C_y^{-1/2} V_k

    Canonical correlation analysis of the anchors gives a subspace of each space in which the two correlate; in it,

    - ``method='affine'``: an affine map, fitted to the anchors by least squares, carries one side to the other; the
      score of a pair is their cosine.
    - ``method='local_cka'``: the CKA of the anchors with the pair appended (:func:`clusterplug.functional.
      local_cka_scores`); nothing more is learnt.
    - ``method='cosine'``: the cosine of the two projections.

    Anchors are read once, in blocks; all else works on triangles of p + q rows. Computed in float64.

    Args:
        n_components: Dimensions of the subspaces; ``'auto'`` (or None): as many as come before the largest fall of the
            held-out correlations; ``'full'``: the whole spaces, no subspace.
        method: See above.
        ridge: Share of the mean variance that is added to each direction.
        weight: ``'corr'`` multiplies each direction by its canonical correlation, which damps those that hold noise;
            None leaves all of unit variance.
        direction: Which side the affine map carries, ``'y->x'`` or ``'x->y'``.
        cv: Folds of the held-out correlations, at least 2; 0 = none (then ``'auto'`` reads those of the anchors).
        random_state: Of the folds and of the order in which ties are broken.
        verbose: 1 prints what was found.

    Attributes:
        n_components_: dimensions used (None for ``'full'``).
        canonical_correlations_: of the anchors themselves, descending. **Near 1 whatever the features when anchors are
            few**; held_out_correlations_: on anchors that were not fitted to, the figures to believe (None with cv=0).
        x_weights_, y_weights_: (p, k), (q, k) maps into the subspaces, 0 for constant features. x_mean_, y_mean_.
        map_: the affine map. anchors_x_, anchors_y_: projected anchors, for ``'local_cka'``.
        n_features_in_: p. n_features_y_: q. Arrays are of the kind of the anchors (NumPy or tensor), in float64.

    Raises:
        ValueError: Unpaired lengths, NaN or infinity, fewer than 4 anchors, no feature that varies, more components
            than the rank, an option out of range.
        NotFittedError: A use before ``fit``.

    Warns:
        UserWarning: Constant features (they are ignored), fewer anchors than twice the features of both (over-fit),
            no component that correlates on held-out anchors, repeated rows among the candidates.

    Source: Hadgi et al., "Escaping Plato's Cave: Towards the alignment of 3D and text latent spaces", CVPR 2025, arXiv
    2503.05283 (no code could be had; from the paper); Maniparambil et al., CVPR 2024. **Differs from the authors'
    code**: held-out correlations, a number of components that is found, local CKA in closed form.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(220, 6, generator=g)
        >>> y = x[:, :3] @ torch.randn(3, 5, generator=g) + 0.01 * torch.randn(220, 5, generator=g)
        >>> aligner = SubspaceAligner('auto').fit(x[:200], y[:200])
        >>> aligner.n_components_, bool((aligner.match(x[200:], y[200:]) == torch.arange(20)).float().mean() > 0.8)
        (3, True)
    """

    anchors_x_: Any  # or map_, as the method goes
    anchors_y_: Any
    map_: Any

    def __init__(
        self,
        n_components: int | str | None = 50,
        method: str = 'affine',
        *,
        ridge: float = 1e-4,
        weight: str | None = None,
        direction: str = 'y->x',
        cv: int = 5,
        random_state: Any = 0,
        verbose: int = 0,
    ):
        self.n_components = n_components
        self.method = method
        self.ridge = ridge
        self.weight = weight
        self.direction = direction
        self.cv = cv
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, Y: Any) -> 'SubspaceAligner':
        """Learn from anchors: row i of ``X`` (n, p) and of ``Y`` (n, q) is one sample; arrays or tensors."""
        self._check_parameters()
        for name in [name for name in vars(self) if name.endswith('_')]:
            delattr(self, name)
        x, self._is_torch = read_rows(X, 'X')
        y, _ = read_rows(Y, 'Y')
        y = y.to(x.device)
        if len(x) != len(y):
            raise ValueError(f'Y must hold the partners of X, {len(x)} rows, got {len(y)}; row i of both is one sample')
        if len(x) < 4:
            raise ValueError(f'X must hold at least 4 anchors, got {len(x)}')
        self.n_features_in_, self.n_features_y_ = x.shape[1], y.shape[1]
        (x, x_kept), (y, y_kept) = varying(x, 'X'), varying(y, 'Y')
        if len(x) < 2 * (x.shape[1] + y.shape[1]):
            warnings.warn(
                f'{type(self).__name__}: {len(x)} anchors are few for {x.shape[1]} + {y.shape[1]} features (twice as '
                f'many would be {2 * (x.shape[1] + y.shape[1])}): correlations of the anchors are near 1 whatever the '
                f'features. Read held_out_correlations_, add anchors, or raise ridge',
                stacklevel=2,
            )
        with exact_products(x):
            self._solve(x, y, x_kept, y_kept)
        return self

    def transform_x(self, X: Any) -> Any:
        """Return features (N, p) in the subspace (N, k), in their kind."""
        return self._like(X, self._project(X, 'x'))

    def transform_y(self, Y: Any) -> Any:
        """Return features (N, q) in the subspace (N, k), in their kind."""
        return self._like(Y, self._project(Y, 'y'))

    def score_matrix(self, X: Any, Y: Any) -> Any:
        """Return how well each row of ``X`` (Q, p) goes with each row of ``Y`` (R, q): (Q, R), higher = better."""
        return self._like(X, self._scores(X, Y))

    def match(self, X: Any, Y: Any) -> Any:
        """Return for each row of ``X`` its row of ``Y`` in the best one-to-one matching, -1 where none is left.

        Candidates are shuffled first, so that ties do not favor the order in which they came. Warns of repeated rows,
        among which no matching can choose.
        """
        scores = self._scores(X, Y)
        self._report_repeats(X, Y)
        order = self._shuffled(scores.shape[1])
        rows, cols = linear_assignment(scores[:, order], maximize=True)
        found = torch.full((scores.shape[0],), -1, device=scores.device)
        found[rows] = order[cols]
        return self._like(X, found)

    def retrieve(self, X: Any, Y: Any, k: int = 5) -> Any:
        """Return for each row of ``X`` the ``k`` best rows of ``Y``, best first: (Q, k). Ties in random order."""
        scores = self._scores(X, Y)
        k = check_count(k, 'k', 1, scores.shape[1])
        order = self._shuffled(scores.shape[1])
        return self._like(X, order[scores[:, order].sort(dim=1, descending=True, stable=True).indices[:, :k]])

    def evaluate(self, X: Any, Y: Any, k: int = 5) -> dict[str, float]:
        """Return shares of paired rows (row i belongs to row i) that are found, next to chance.

        A row of ``Y`` that is repeated counts as found wherever one of its copies is.

        Returns:
            ``match``, ``top1``, ``topk`` (named by k), their ``chance_*``, ``repeated`` (rows of Y that have a copy).
        """
        x, y = read_rows(X, 'X')[0], read_rows(Y, 'Y')[0]
        if len(x) != len(y):
            raise ValueError(f'Y must hold the partners of X, {len(x)} rows, got {len(y)}; row i of both is one sample')
        k = check_count(k, 'k', 1, len(y))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of repeats: they are counted
            pairs, lists = (torch.as_tensor(each) for each in (self.match(X, Y), self.retrieve(X, Y, k)))
        return paired_shares(y, pairs.cpu(), lists.cpu())

    def _check_parameters(self) -> None:
        if not (self.n_components is None or self.n_components in ('auto', 'full')):
            if isinstance(self.n_components, str):
                check_parameter(check_choice, self.n_components, 'n_components', ('auto', 'full'), ' or an int')
            check_parameter(check_count, self.n_components, 'n_components', 1)
        check_parameter(check_choice, self.method, 'method', METHODS)
        check_parameter(check_choice, self.direction, 'direction', DIRECTIONS)
        check_parameter(check_number, self.ridge, 'ridge', 0)
        check_parameter(check_count, self.cv, 'cv', 0)
        if self.cv == 1:
            raise ValueError('cv must be 0 or at least 2, got 1')
        if self.weight is not None:
            check_parameter(check_choice, self.weight, 'weight', ('corr',), ' or None')
        if self.n_components == 'full' and (self.method == 'cosine' or self.weight is not None):
            raise ValueError("n_components='full' has no common space: use method 'affine' or 'local_cka', weight=None")

    def _solve(self, x: Tensor, y: Tensor, x_kept: Tensor, y_kept: Tensor) -> None:
        generator = make_generator(self.random_state, torch.device('cpu'))
        parts = torch.randperm(len(x), generator=generator).to(x.device).chunk(max(1, min(self.cv, len(x) // 2)))
        triangles = [triangle(x[part], y[part]) for part in parts]
        given = factors(joined(triangles), len(x), x.shape[1])
        held_out = None
        if len(parts) > 1:
            held_out = held_out_correlations(x, y, list(parts), triangles, self.ridge)
        found = canonical(given, None, self.ridge)
        rank = int((found.correlations > 0).sum())
        number = self._choose(found.correlations, held_out, rank)
        x_map = identity(x) if number is None else found.x_weights[:, :number]
        y_map = identity(y) if number is None else found.y_weights[:, :number]
        if self.weight == 'corr':
            x_map, y_map = (each * found.correlations[:number] for each in (x_map, y_map))
        one, other = given.x @ x_map, given.y @ y_map
        if self.direction == 'x->y':
            one, other = other, one
        results = {
            'canonical_correlations': found.correlations[:rank], 'held_out_correlations': held_out,
            'x_weights': scatter(x_map, x_kept), 'y_weights': scatter(y_map, y_kept),
            'x_mean': scatter(given.x_mean, x_kept), 'y_mean': scatter(given.y_mean, y_kept),
            'map': torch.linalg.pinv(other, rtol=1e-10) @ one,
        }  # fmt: skip
        if self.method == 'local_cka':
            results['anchors_x'] = (x - given.x_mean) @ x_map
            results['anchors_y'] = (y - given.y_mean) @ y_map
        for name, value in results.items():
            setattr(self, f'{name}_', value if self._is_torch or value is None else value.cpu().numpy())
        self.n_components_ = number
        self._report(f'{len(x)} anchors, {number or "all"} components')

    def _choose(self, correlations: Tensor, held_out: Tensor | None, rank: int) -> int | None:
        if held_out is not None and float(held_out.max()) < 0.1:
            warnings.warn(
                f'{type(self).__name__}: no component correlates on held-out anchors (largest '
                f'{float(held_out.max()):.3f}): they have nothing linear in common, or the pairs are mixed up',
                stacklevel=4,
            )
        if self.n_components == 'full':
            return None
        if self.n_components is None or self.n_components == 'auto':
            return max(1, min(rank, largest_gap(correlations if held_out is None else held_out)))
        if int(self.n_components) > rank:
            raise ValueError(
                f'n_components must be at most {rank}, the rank that the two sets of anchors share, got '
                f"{self.n_components}; lower it, or use 'auto'"
            )
        return int(self.n_components)

    def _check_fitted(self) -> None:
        if not hasattr(self, 'x_weights_'):
            try:
                from sklearn.exceptions import NotFittedError as error
            except ImportError:
                error = NotFittedError
            raise error(f"This {type(self).__name__} instance is not fitted yet; call 'fit' first")

    def _project(self, values: Any, side: str) -> Tensor:
        self._check_fitted()
        tensor, _ = read_rows(values, side.upper())
        mean, weights = (torch.as_tensor(getattr(self, f'{side}_{name}_')) for name in ('mean', 'weights'))
        if tensor.shape[1] != len(weights):
            raise ValueError(
                f'{side.upper()} has {tensor.shape[1]} features, but {type(self).__name__} is expecting '
                f'{len(weights)} features as input'
            )
        with exact_products(tensor):
            return (tensor - mean.to(tensor.device)) @ weights.to(tensor.device)

    def _scores(self, X: Any, Y: Any) -> Tensor:
        x, y = self._project(X, 'x'), self._project(Y, 'y')
        y = y.to(x.device)
        with exact_products(x):
            if self.method == 'local_cka':
                x_anchor, y_anchor = (torch.as_tensor(each).to(x.device) for each in (self.anchors_x_, self.anchors_y_))
                return local_cka_scores(x_anchor, y_anchor, x, y)
            if self.method == 'affine':
                carried = torch.as_tensor(self.map_).to(x.device)
                x, y = (x, y @ carried) if self.direction == 'y->x' else (x @ carried, y)
            return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).mT

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(number, generator=make_generator(self.random_state, torch.device('cpu')))

    def _report_repeats(self, X: Any, Y: Any) -> None:
        for values, name in ((X, 'X'), (Y, 'Y')):
            tensor = read_rows(values, name)[0]
            number = len(torch.unique(tensor, dim=0))
            if number < len(tensor):
                warnings.warn(
                    f'{name} holds {len(tensor)} rows, of which only {number} are different (repeated captions?): no '
                    f'matching can choose among copies. Drop them, or use evaluate, which counts copies as found',
                    stacklevel=3,
                )

    @staticmethod
    def _like(given: Any, values: Tensor) -> Any:
        return values if isinstance(given, Tensor) else values.cpu().numpy()
