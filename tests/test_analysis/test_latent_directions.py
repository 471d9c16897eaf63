# SPDX-License-Identifier: Apache-2.0
"""Directions of generators, edits of a region, the deterministic sampler, a real denoiser."""

import math

import pytest
import torch

from clusterplug.analysis import (
    edit_sample,
    latent_directions,
    null_space_projection,
    run_sampler,
    traverse,
    vp_levels,
)
from clusterplug.datasets import MoLRG
from clusterplug.functional import low_rank_posterior_mean


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_of_a_linear_generator():
    weight = randn(12, 5)
    fn = lambda z: (weight @ z.flatten()).view(3, 4)  # noqa: E731
    found = latent_directions(fn, torch.zeros(1, 5).double(), 3)
    _u, s, vh = torch.linalg.svd(weight)
    assert found.directions.shape == (3, 1, 5)
    torch.testing.assert_close(found.values, s[:3])
    torch.testing.assert_close((found.directions[:, 0] @ vh[:3].T).abs(), torch.eye(3).double(), rtol=0, atol=1e-9)
    moved = traverse(fn, torch.zeros(1, 5).double(), found.directions, [-2.0, 0.0, 2.0])
    assert moved.shape == (3, 3, 3, 4)
    assert (moved[:, 1] == 0).all()
    torch.testing.assert_close(moved[:, 2].flatten(1).norm(dim=1), 2 * s[:3])


def test_region_leaves_the_rest_alone():
    """Of 8 inputs, 6 reach the rest of the output: two directions are left that do not."""
    weight, rest = randn(10, 8), randn(20, 6, seed=1) @ torch.linalg.qr(randn(8, 6, seed=2))[0].T
    mask = torch.arange(30) < 10
    fn = lambda z: torch.cat([weight @ z, rest @ z]).tanh()  # noqa: E731
    z = torch.zeros(8).double()
    plain = latent_directions(fn, z, 2, mask=mask, null_rank=0)
    local = latent_directions(fn, z, 2, mask=mask, null_rank=6)
    assert plain.outside.min() > 0.1
    assert local.outside.max() < 1e-8
    assert local.values.min() > 0.1
    torch.testing.assert_close(local.directions.norm(dim=1), torch.ones(2).double())
    change = traverse(fn, z, local.directions, [0.5]) - fn(z)
    assert change[..., ~mask].abs().max() < 1e-8
    assert change[..., mask].abs().max() > 0.05
    whole = latent_directions(lambda z: weight @ z, z, 1, mask=torch.arange(10) < 5, null_rank=3)
    v = torch.linalg.svd(weight[5:])[2][:3]
    assert (v @ whole.directions[0]).abs().max() < 1e-9


def test_null_space_projection():
    directions, null = randn(4, 2, 3), randn(3, 2, 3, seed=1)
    got = null_space_projection(directions, torch.cat([null, 2 * null[:1], 0 * null[:1]]))
    assert (got.flatten(1) @ null.flatten(1).T).abs().max() < 1e-12
    torch.testing.assert_close(got.flatten(1).norm(dim=1), torch.ones(4).double())
    v = torch.linalg.qr(null.flatten(1).T)[0]
    expected = directions.flatten(1) - directions.flatten(1) @ v @ v.T
    torch.testing.assert_close(got.flatten(1), expected / expected.norm(dim=1, keepdim=True))
    with pytest.warns(UserWarning, match='nothing is left'):
        assert (null_space_projection(null[:1], null) == 0).all()
    kept = null_space_projection(directions, null[:0])
    torch.testing.assert_close(kept.flatten(1), torch.nn.functional.normalize(directions.flatten(1)))
    with pytest.raises(ValueError, match='null must have shape'):
        null_space_projection(directions, null[..., :2])
    with pytest.raises(TypeError, match='floating'):
        null_space_projection(directions.long(), null)


def exact(bases):
    return lambda x, signal, noise: low_rank_posterior_mean(x, bases, signal=signal, noise=noise)


def test_sampler_ends_on_the_subspaces():
    data = MoLRG(24, [3, 3], 4, seed=0, dtype=torch.float64)
    x = randn(200, 24)
    clean = run_sampler(exact(data.bases), x, vp_levels(60))
    held = torch.stack([(clean @ basis).square().sum(1) for basis in data.bases], 1) / clean.square().sum(1)[:, None]
    assert held.amax(1).min() > 0.999
    counts = held.argmax(1).bincount()
    assert counts.min() > 60
    # and draws from it: unit variance in each direction
    energy = clean.square().sum(1).mean() / 3
    assert 0.85 < energy < 1.15
    states = run_sampler(exact(data.bases), x, vp_levels(5), trajectory=True)
    assert len(states) == 6
    assert torch.equal(states[0], x)


def test_sampler_is_the_euler_step_of_a_flow():
    f = lambda x, t, g: torch.tanh(x) * t.view(-1, 1)  # noqa: E731
    x = expected = randn(3, 4)
    for step in range(10):
        t = step / 10
        clean = f(expected, torch.full((3,), t), None)
        expected = expected + (clean - expected) / (1 - t) / 10
    got = run_sampler(f, x, [(step / 10, 1 - step / 10) for step in range(10)])
    torch.testing.assert_close(got, expected)


def test_edits_move_along_singular_vectors_and_not_along_random_ones():
    data = MoLRG(24, [3, 3], 4, seed=0, dtype=torch.float64)
    levels = vp_levels(20, first=0.6)
    signal, noise = levels[0]
    x = signal * data.x[0] + noise * randn(24, seed=4)
    fn = lambda x: low_rank_posterior_mean(x[None], data.bases, signal=signal, noise=noise)[0]  # noqa: E731
    found = latent_directions(fn, x, 3)
    still = edit_sample(exact(data.bases), x, found.directions[0], [0.0], levels)[0]
    along = edit_sample(exact(data.bases), x, found.directions[0], [1.0, -1.0], levels, keep_norm=False)
    away = torch.linalg.qr(torch.cat([*data.bases, randn(24, 1, seed=8)], 1))[0][:, -1]
    other = edit_sample(exact(data.bases), x, away, [1.0], levels, keep_norm=False)
    assert (along - still).norm(dim=1).min() > 0.5
    assert (other - still).norm() < 1e-6
    kept = edit_sample(exact(data.bases), x, found.directions[0], [5.0], levels)
    assert kept.norm() < along.norm() * 3
    torch.testing.assert_close(still, run_sampler(exact(data.bases), x[None], levels)[0])


def test_levels():
    levels = vp_levels(10)
    assert all(s * s + g * g == pytest.approx(1) for s, g in levels)
    assert levels[0][1] == pytest.approx(0.9999)
    assert levels[-1][1] == pytest.approx(0.02)
    assert vp_levels(1, 0.5, 0.1)[0] == (pytest.approx(math.sqrt(0.75)), 0.5)


def test_bad_input():
    fn, z = (lambda z: z.sin()), torch.ones(4)
    for mask in (torch.ones(4).bool(), torch.zeros(4).bool()):
        with pytest.raises(ValueError, match=r'mask must be True in a part|finite'):
            latent_directions(fn, z, 1, mask=mask)
    with pytest.raises(ValueError, match='rank must be'):
        latent_directions(fn, z, 5)
    with pytest.raises(ValueError, match='directions must have shape'):
        traverse(fn, z, torch.eye(3), [1.0])
    with pytest.raises(ValueError, match='at least one'):
        traverse(fn, z, torch.eye(4), [])
    with pytest.raises(ValueError, match='levels must be'):
        run_sampler(lambda x, s, g: x, z[None], [(1.0, 0.1), (0.5, 0.5)])
    with pytest.raises(ValueError, match='levels must be'):
        run_sampler(lambda x, s, g: x, z[None], [])
    with pytest.raises(ValueError, match='shape of x'):
        edit_sample(lambda x, s, g: x, z, torch.ones(3), [1.0], [(1.0, 0.1)])
    with pytest.raises(ValueError, match='strengths'):
        edit_sample(lambda x, s, g: x, z, z, [], [(1.0, 0.1)])


def test_inference_mode_around_a_call_changes_nothing():
    weight, mask = randn(12, 8), torch.arange(12) < 4
    fn = lambda z: (weight @ z).sin()  # noqa: E731
    z = randn(8)
    expected = latent_directions(fn, z, 2, mask=mask, null_rank=3)
    with torch.inference_mode():
        for x in (z, z * 1):
            torch.testing.assert_close(latent_directions(fn, x, 2, mask=mask, null_rank=3), expected)
