# SPDX-License-Identifier: Apache-2.0
"""MatryoshkaHead: widths, what each level sees, prototypes of length 1, types, bad input."""

import pytest
import torch
import torch.nn.functional as F

from clusterplug.heads import MatryoshkaHead


def small(**options):
    torch.manual_seed(0)
    return MatryoshkaHead(
        **{'in_channels': 32, 'num_prototypes': 100, 'hidden_channels': 12, 'bottleneck': 8, **options}
    )


def features(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize('mode', ['slice', 'project'])
def test_widths_and_unit_prototypes(mode):
    head = small(mode=mode)
    scores = head(features(5, 32))
    assert [tuple(each.shape) for each in scores] == [(5, 100 * m // 32) for m in (2, 4, 8, 16, 32)]
    for rows in head.prototypes:
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    assert [level.prototypes.shape[1] for level in head.levels] == [8] * 5


def test_a_slice_sees_its_first_channels_alone():
    head, x = small(), features(6, 32)
    before = head(x)
    for channel in (0, 1, 3, 7, 15, 31):
        moved = x.clone()
        moved[:, channel] += 1
        changed = [not torch.equal(a, b) for a, b in zip(head(moved), before)]
        assert changed == [channel < width for width in head.widths]
    x.requires_grad_()
    for scores, width in zip(head(x), head.widths):
        (grad,) = torch.autograd.grad(scores.square().sum(), x, retain_graph=True)
        assert grad[:, width:].eq(0).all()
        assert grad[:, :width].ne(0).any(0).all()


def test_projections_see_everything_and_logits_have_no_bound():
    head, x = small(mode='project'), features(6, 32)
    before = head(x)
    moved = x.clone()
    moved[:, 31] += 1
    assert all(not torch.equal(a, b) for a, b in zip(head(moved), before))
    assert not head.normalize
    assert small().normalize
    assert isinstance(head.levels[0].projector[-1], torch.nn.GELU)
    bounded = small(mode='project', normalize=True)(x * 1e4)
    assert all(each.abs().max() <= 1 + 1e-5 for each in bounded)


def test_scores_by_a_plain_loop():
    head, x = small(), features(4, 32)
    for level, width, scores in zip(head.levels, head.widths, head(x)):
        first, _, second, _, third = level.projector
        z = third(F.gelu(second(F.gelu(first(x[:, :width])))))
        for i in range(4):
            for k in range(scores.shape[1]):
                expected = F.cosine_similarity(z[i], level.prototypes[k], dim=0)
                torch.testing.assert_close(scores[i, k], expected, rtol=1e-5, atol=1e-6)


def test_prototypes_of_any_length_score_alike():
    head, x = small(), features(4, 32)
    before = head(x)
    with torch.no_grad():
        for level in head.levels:
            level.prototypes.mul_(7.0)
    for one, other in zip(head(x), before):
        torch.testing.assert_close(one, other)


def test_tokens_and_rows_agree_and_so_do_types():
    head, x = small(), features(2, 3, 32)
    for one, other in zip(head(x), head(x.flatten(0, 1))):
        torch.testing.assert_close(one.flatten(0, 1), other)
    assert next(tuple(each.shape) for each in head(x[:0])) == (0, 3, 6)
    assert head(x[0, 0])[0].shape == (6,)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = head(x)
    for one, other in zip(inside, head(x)):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.03)
    half = head.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert all(each.dtype == torch.bfloat16 and each.isfinite().all() for each in half)


def test_no_layers_compare_the_slice_itself_and_state_goes_round():
    head, x = small(num_layers=0), features(4, 32)
    torch.testing.assert_close(head(x)[1], F.normalize(x[:, :4], dim=1) @ head.prototypes[1].T)
    other = small()
    state = {key: torch.randn_like(value) for key, value in other.state_dict().items()}
    fresh = small()
    fresh.load_state_dict(state)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(fresh(x), other(x)))


def test_gradients_reach_features_and_prototypes():
    head = small(in_channels=4, nesting=(2, 1), num_prototypes=6, hidden_channels=3, bottleneck=3).double()
    x = features(3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: tuple(head(y)), (x,))
    sum(each.square().sum() for each in head(x)).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize('norm', ['batch', 'layer'])
@pytest.mark.parametrize('mode', ['slice', 'project'])
def test_norms_follow_every_hidden_layer(norm, mode):
    plain, head, x = small(mode=mode), small(mode=mode, norm=norm), features(9, 32)
    for level, parts in zip(head.levels, plain.levels):
        rows, count = (x if mode == 'project' else x[:, : level.projector[0].in_features]), 0
        for layer in parts.projector:  # the same weights, as norms draw nothing
            if isinstance(layer, torch.nn.Linear) and layer.out_features == 12:
                rows, count = layer(rows), count + 1
                dim = 0 if norm == 'batch' else 1
                rows = (rows - rows.mean(dim, keepdim=True)) / (
                    rows.var(dim, unbiased=False, keepdim=True) + 1e-5
                ).sqrt()
            else:
                rows = layer(rows)
        assert count == 2
        torch.testing.assert_close(
            level.projector(x if mode == 'project' else x[:, : level.projector[0].in_features]), rows
        )


def test_bad_input():
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'layer'"):
        small(norm='group')
    with pytest.raises(ValueError, match='num_layers=1 has none'):
        small(norm='batch', num_layers=1)
    with pytest.raises(ValueError, match=r'divisible by every number of nesting, got 24 and \[16\]'):
        small(in_channels=24)
    with pytest.raises(ValueError, match='every level at least 2'):
        small(num_prototypes=16)
    with pytest.raises(ValueError, match="mode must be one of 'slice', 'project'"):
        small(mode='crop')
    with pytest.raises(ValueError, match='nesting must be a sequence'):
        small(nesting=4)
    with pytest.raises(ValueError, match=r'x must have shape \(\.\.\., 32\)'):
        small()(features(3, 16))
    with pytest.raises(TypeError, match='x must be a floating tensor'):
        small()(torch.ones(3, 32, dtype=torch.int64))
    with pytest.raises(TypeError, match='x must be a floating tensor'):
        small()([1.0])
