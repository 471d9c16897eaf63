# SPDX-License-Identifier: Apache-2.0
"""KoopmanLoss on two ranks with uneven batches = one process: losses, gradients, also with no sequence on a rank."""

import pytest
import torch

from clusterplug.functional import spectral_entropy
from clusterplug.losses import KoopmanLoss
from clusterplug.testing import run_gloo

SIZES = {'uneven': (3, 5), 'none on one': (0, 4), 'even': (4, 4)}
OPTIONS = dict(num_neighbors=1, contrast_weight=0.5, consistency_weight=2.0, entropy_weight=0.3)


def latents(number):
    return torch.randn(number, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2.0


def losses_of(operator, z, **options):
    loss = KoopmanLoss(4, operator, **OPTIONS, **options)
    if loss.weight is not None:
        torch.nn.init.normal_(loss.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    z = z.clone().requires_grad_()
    terms = loss(z)
    sum(terms.values()).backward()
    weight = None if loss.weight is None else loss.weight.grad
    return {name: value.detach() for name, value in terms.items()}, z.grad, weight


def _on_rank(rank, size):
    found = {}
    for name, sizes in SIZES.items():
        own = latents(sum(sizes)).split(sizes)[rank]
        for operator in ('ridge', 'learned', 'orthogonal'):
            found[name, operator] = losses_of(operator, own)
    whole = latents(8).flatten(0, 1)
    found['entropy'] = spectral_entropy(1e-9 * whole.split((5, 43))[rank] + 3, across_ranks=True)
    found['equal rows'] = spectral_entropy(torch.full((3 + rank, 4), 1.1), across_ranks=True)
    found['alone'] = losses_of('ridge', latents(5).split((3, 2))[rank], gather=False)
    return found


def test_two_ranks_equal_one_process():
    ranks = run_gloo(_on_rank, 2)
    for name, sizes in SIZES.items():
        for operator in ('ridge', 'learned', 'orthogonal'):
            terms, gradient, weight = losses_of(operator, latents(sum(sizes)))
            parts = [each[name, operator] for each in ranks]
            for term, value in terms.items():
                torch.testing.assert_close(torch.stack([part[0][term] for part in parts]).mean(), value)
            # a gradient of DistributedDataParallel is the mean over ranks
            torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient, rtol=1e-9, atol=1e-12)
            if weight is not None:
                torch.testing.assert_close((parts[0][2] + parts[1][2]) / 2, weight, rtol=1e-4, atol=1e-5)  # fp32
    whole = latents(8).flatten(0, 1)
    for rank in ranks:
        torch.testing.assert_close(rank['entropy'], spectral_entropy(whole), rtol=1e-6, atol=0)
        assert float(rank['equal rows']) == 0
    for rank, own in zip(ranks, latents(5).split((3, 2)), strict=True):
        torch.testing.assert_close(rank['alone'][0], losses_of('ridge', own)[0])


def test_one_process_is_not_changed_by_the_options():
    z = latents(3)
    assert losses_of('ridge', z)[0] == losses_of('ridge', z, gather=False)[0]
    rows = z.flatten(0, 1)
    assert torch.equal(spectral_entropy(rows, across_ranks=True), spectral_entropy(rows))
    with pytest.raises(ValueError, match='at least one point'):
        spectral_entropy(rows[:0], across_ranks=True)
