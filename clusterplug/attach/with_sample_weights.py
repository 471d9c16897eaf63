# SPDX-License-Identifier: Apache-2.0
"""A factor for the loss of each sample of a batch, on any segmentor or detector of mmdet3d."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.attach._weighted_heads import holders_of_losses, turn, turn_model, weighted_form
from clusterplug.core.checks import check_choice, check_number
from clusterplug.datasets.transforms import look_up, read_likelihoods, sample_id
from clusterplug.functional import likelihood_weights
from clusterplug.registry import MODELS

MODES = ('exact', 'batch_mean')


class SampleWeighting(nn.Module):
    """Finds the weights of the samples of a batch, and holds them for the heads while the model computes its losses.

    Arguments as of :func:`WithSampleWeights`. ``last_weights``: (B,) of the last training step.
    """

    def __init__(self, eta: float, gamma: float, likelihood: Any, key: str | None, normalize: str | None, mode: str):
        super().__init__()
        self.eta, self.gamma = check_number(eta, 'eta', 0), check_number(gamma, 'gamma', 0)
        self.mode = check_choice(mode, 'mode', MODES)
        if normalize is not None:
            check_choice(normalize, 'normalize', ['mean'], ' or None')
        self.table, self.scale = None, 1.0
        if likelihood is not None:
            table, known = read_likelihoods(likelihood)
            self.key = key or known or 'sample_idx'
            p = torch.tensor(list(table.values()), dtype=torch.float64)
            weights = likelihood_weights(p, eta=self.eta, gamma=self.gamma)
            if normalize == 'mean':
                if not weights.sum() > 0:
                    raise ValueError('normalize must be None where all weights are 0 (eta is 0, all p are 1)')
                weights = weights / weights.mean()
            self.table = dict(zip(table, weights.tolist(), strict=True))
        elif normalize is not None:
            raise ValueError("normalize='mean' needs the likelihoods of the whole data set; pass likelihood=")
        else:
            self.key = key or 'sample_likelihood'
        self.alone: list[str] = []  # heads that are weighted only in batches of one sample
        self.current: Tensor | None = None
        self.last_weights: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Samples of this step; 0 outside of one."""
        return 0 if self.current is None else len(self.current)

    def weights_of_batch(self, count: int, name: str) -> Tensor | None:
        """Weights (count,) for a head; None outside of a training step, or where the heads are not used."""
        if self.current is None or self.mode != 'exact' or self.alone:
            return None
        if len(self.current) != count:
            raise ValueError(f'{name} sees {count} samples, but the batch has {len(self.current)}')
        return self.current

    def before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Find the weights of the samples, where the model is asked for its losses."""
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        self.current = None
        if mode != 'loss':
            return
        self.begin(model, kwargs.get('data_samples', args[1] if len(args) > 1 else None))

    def begin(self, model: nn.Module, samples: Any) -> None:
        """Find the weights of ``samples``."""
        self.current = None
        if not samples:
            raise ValueError('a training step needs data_samples, whose meta information has the id or the likelihood')
        device = next(model.parameters()).device
        found = torch.tensor([self._weight(sample) for sample in samples], device=device)
        if self.alone and self.mode == 'exact' and len(samples) > 1:
            raise ValueError(
                f'{", ".join(self.alone)} cannot be weighted sample by sample in a batch of {len(samples)}; take '
                f"batch_size=1 (accumulative_counts keeps the step), mode='batch_mean', or the LikelihoodSampler"
            )
        self.current = self.last_weights = found

    def after(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """End the step that :meth:`before` began."""
        return self.end(output)

    def end(self, output: Any) -> Any:
        """Forget the weights; weight the losses as a whole where that is what was asked for."""
        weights, self.current = self.current, None
        if weights is None or (self.mode == 'exact' and not self.alone):
            return output
        if not isinstance(output, dict):
            raise ValueError(f'the model must return a dict of losses to be weighted, got {type(output).__name__}')
        factor = weights.mean()
        return {
            name: _scaled(value, factor) if 'loss' in name else value for name, value in output.items()
        }  # what mmengine adds up is what has 'loss' in its name

    def _weight(self, sample: Any) -> float:
        meta = getattr(sample, 'metainfo', sample)
        if self.table is not None:
            return look_up(self.table, sample_id(meta, self.key), self.key)
        if self.key not in meta:
            raise ValueError(
                f'a data sample has no {self.key!r} in its meta information, got {sorted(meta)}; add '
                f"dict(type='clusterplug.SampleValues', ...) to the pipeline and the name to the meta_keys of "
                f'Pack3DDetInputs, or pass likelihood='
            )
        p = torch.as_tensor(meta[self.key], dtype=torch.float64).reshape(())
        return float(likelihood_weights(p, eta=self.eta, gamma=self.gamma))


def _scaled(value: Any, factor: Tensor) -> Any:
    if isinstance(value, list | tuple):
        return [_scaled(each, factor) for each in value]
    return value * factor.to(value.dtype)


@MODELS.register_module()
def WithSampleWeights(
    model: dict | nn.Module,
    eta: float = 0.5,
    gamma: float = 5.0,
    likelihood: Any = None,
    key: str | None = None,
    normalize: str | None = None,
    mode: str = 'exact',
) -> nn.Module:
    r"""Build a model whose loss of a sample is multiplied by a weight that grows where the sample is unlikely.

    .. math:: L = \frac{1}{n} \sum_i w(p_i) \, L_i, \qquad w(p) = \frac{\eta + (1 - p)^\gamma}{\eta + 1},

    with L_i the terms of sample i as the heads sum them, and n their normalizers (number of positives, of points),
    which stay as they are: with gamma = 0 all losses and gradients are those of the model, bit for bit. Weights are not
    used at test time, change no name in the ``state_dict`` and not the length of an epoch.

    Every sample is weighted exactly in batches of any size: anchor heads (SECOND, PointPillars, MVX-Net, PV-RCNN's
    and Part-A2's proposals), CenterPoint (heat maps and boxes), PointRCNN's and PV-RCNN's stages, and all segmentors
    (cross entropy and the like point by point; Lovasz: the contribution of each point). Other heads are weighted
    exactly in batches of one sample, and refuse larger ones.

    Args:
        model: config (or module) of an mmdet3d segmentor or detector.
        eta: floor of the weights, >= 0. gamma: how fast they fall, >= 0.
        likelihood: file of ``tools/dataset_equity.py``, dict ``{id: p}`` or
            :class:`~clusterplug.estimators.SampleLikelihood`. None: each sample brings its own, put in by
            :class:`~clusterplug.datasets.transforms.SampleValues`.
        key: name in the meta information of a data sample of its id, by default what the file says, else
            ``'sample_idx'``; without ``likelihood`` of the likelihood itself, by default ``'sample_likelihood'``.
        normalize: ``'mean'`` divides by the mean weight of the data set, so that the effective learning rate stays;
            needs ``likelihood``.
        mode: ``'exact'``, or ``'batch_mean'``: all losses times the mean weight of the batch, which is what the
            authors' forks come to in batches of more than one sample. Approximate; for any model.

    Returns:
        The model. Its ``sample_weighting.last_weights`` are those of the last step, for a log.

    Raises:
        ValueError: a model that is weighted already, an unknown option; in a training step a sample without id or
            likelihood, and a batch of several samples where a head cannot be weighted.

    Source: Shrivastava et al., "DatasetEquity", ICCV 2023 Workshops (arXiv 2308.09878), and the forks of BEVFormer and
    BEVFusion. **Differs from the authors' code**: theirs multiplies the loss of the whole batch by the vector of
    weights, so that every sample gets the mean weight; a sample without likelihood gets the lowest weight silently.

    Building from a config switches on :mod:`clusterplug.compat`, workarounds for faults of the host packages, in the
    whole process, with a line in the log; a model that is given as a module switches nothing on.

    Example:
        In a config, after ``_base_``::

            model = dict(
                _delete_=True,
                type='clusterplug.WithSampleWeights',
                model=_base_.model,
                likelihood='likelihood.json',
            )
    """
    if isinstance(model, dict):
        from clusterplug import compat

        with compat.switched_on():
            model = MODELS.build(model)
    if hasattr(model, 'sample_weighting'):
        raise ValueError(f'the model {type(model).__name__} has sample weights already; wrap it once')
    weighting = SampleWeighting(eta, gamma, likelihood, key, normalize, mode)
    if weighting.mode == 'exact':
        _weight_heads(model, weighting)
    model.sample_weighting = weighting
    turn_model(model)
    model.register_forward_pre_hook(weighting.before, with_kwargs=True)
    model.register_forward_hook(weighting.after, with_kwargs=True)
    return model


def _weight_heads(model: nn.Module, weighting: SampleWeighting) -> None:
    heads = holders_of_losses(model)
    forms = {name: weighted_form(head) for name, head in heads.items()}
    # PAConv's regularization is of its weights, not of samples
    own = [name for name, _ in model.named_children() if 'loss' in name and name != 'loss_regularization']
    weighting.alone = [type(heads[name]).__name__ for name, form in forms.items() if form is None]
    if not heads or own:
        weighting.alone.append(type(model).__name__)
    if not weighting.alone:
        for name, head in heads.items():
            turn(head, forms[name], weighting)
