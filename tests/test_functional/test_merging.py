# SPDX-License-Identifier: Apache-2.0
"""Bipartite matching against hand-computed cases and a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.tokens import bipartite_matching, merge_tokens
from clusterplug.functional.tokens.merging import merge_by_target


def plain_merge(metric, tokens, sizes, num_merged, num_protected):
    """One token at a time, in float64: merged tokens, sizes and the original tokens in each."""
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    free = range(num_protected, len(metric))
    sources, destinations = [n for n in free if n % 2 == 0], [n for n in free if n % 2]
    best = []
    for source in sources if destinations else []:
        scores = [unit[source] @ unit[d] for d in destinations]
        best.append((-max(scores), source, destinations[int(np.argmax(scores))]))
    groups = {n: [n] for n in range(len(metric))}
    for _, source, destination in sorted(best)[:num_merged]:
        groups[destination] += groups.pop(source)
    order = sorted(groups)
    merged = [np.average(tokens[groups[n]], axis=0, weights=sizes[groups[n]]) for n in order]
    return np.stack(merged), np.array([sizes[groups[n]].sum() for n in order]), [groups[n] for n in order]


def test_hand_computed():
    # Sources 0, 2; destinations 1, 3. Token 2 is parallel to 1, token 0 is near 3 but less so.
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.1]])
    merged = merge_tokens(tokens, 1)
    assert merged.tokens.tolist() == [[1.0, 0.0], [0.0, 2.0], [1.0, pytest.approx(0.1)]]
    assert merged.sizes.flatten().tolist() == [1, 2, 1]
    assert merged.unmerge(merged.tokens)[2].tolist() == [0.0, 2.0]
    both = merge_tokens(tokens, 2)
    assert both.sizes.flatten().tolist() == [2, 2]
    torch.testing.assert_close(both.tokens, torch.tensor([[0.0, 2.0], [1.0, 0.05]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 20), st.integers(2, 6), st.integers(0, 3), st.integers(0, 10**6), st.data())
def test_equals_plain_loop(num_tokens, num_channels, num_protected, seed, data):
    num_protected = min(num_protected, num_tokens)
    free = range(num_protected, num_tokens)
    num_merged = data.draw(st.integers(0, sum(n % 2 == 0 for n in free) if any(n % 2 for n in free) else 0))
    generator = torch.Generator().manual_seed(seed)
    metric, tokens = torch.randn(2, num_tokens, num_channels, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 5, (num_tokens, 1), generator=generator).double()
    merged = merge_tokens(tokens, num_merged, metric=metric, sizes=sizes, num_protected=num_protected)
    expected, expected_sizes, groups = plain_merge(
        metric.numpy(), tokens.numpy(), sizes.flatten().numpy(), num_merged, num_protected
    )
    np.testing.assert_allclose(merged.tokens, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(merged.sizes.flatten(), expected_sizes)
    back = merged.unmerge(merged.tokens)
    for place, group in enumerate(groups):
        for n in group:
            assert torch.equal(back[n], merged.tokens[place])


def test_invariants_and_batch_equals_loop():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 17, 8, generator=generator)
    matching = bipartite_matching(x, 6, num_protected=1)
    merged = merge_tokens(x, 6, num_protected=1)
    assert merged.tokens.shape == (2, 3, 11, 8)
    torch.testing.assert_close(merged.sizes.sum(-2), torch.full((2, 3, 1), 17.0))
    # The size-weighted mean of all tokens is kept, protected and untouched tokens are kept bit for bit.
    torch.testing.assert_close((merged.tokens * merged.sizes).sum(-2), x.sum(-2))
    assert torch.equal(merged.tokens[..., 0, :], x[..., 0, :])
    alone = (merged.sizes == 1).squeeze(-1)
    kept = matching.unmerge(merged.tokens) == x
    assert kept.all(-1).sum() == alone.sum()
    for i in range(2):
        for j in range(3):
            assert torch.equal(merge_tokens(x[i, j], 6, num_protected=1).tokens, merged.tokens[i, j])


def test_nothing_to_merge_is_the_identity():
    x = torch.randn(2, 5, 4)
    merged = merge_tokens(x, 0)
    assert torch.equal(merged.tokens, x)
    assert torch.equal(merged.unmerge(x), x)
    one = merge_tokens(x[:, :1], 0)
    assert one.tokens.shape == (2, 1, 4)


def test_reductions():
    tokens = torch.tensor([[1.0, -4.0], [3.0, -2.0], [5.0, 0.0]])
    target = torch.tensor([0, 0, 1])
    assert merge_by_target(tokens, target, 2, reduce='sum').tolist() == [[4, -6], [5, 0]]
    assert merge_by_target(tokens, target, 2, reduce='max').tolist() == [[3, -2], [5, 0]]
    sizes = torch.tensor([[3.0], [1.0], [2.0]])
    assert merge_by_target(tokens, target, 2, sizes=sizes).tolist() == [[1.5, -3.5], [5, 0]]


def test_duplicates_zero_vectors_and_extremes():
    x = torch.ones(1, 6, 3)
    assert bipartite_matching(x, 3).target.tolist() == [[0, 0, 0, 1, 0, 2]]  # all to the first destination
    for values in (torch.zeros(1, 6, 3), torch.full((1, 6, 3), 1e30), torch.full((1, 6, 3), 1e-30)):
        assert torch.isfinite(merge_tokens(values, 2).tokens).all()
        torch.testing.assert_close(merge_tokens(values, 2).tokens, values[:, :4])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_matches_in_fp32_and_keeps_its_type(dtype):
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    half, full = merge_tokens(x, 8), merge_tokens(x.float(), 8)
    assert half.tokens.dtype == dtype
    assert half.sizes.dtype == torch.float32
    assert torch.equal(half.sizes, full.sizes)
    assert torch.equal(half.tokens, full.tokens.to(dtype))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(merge_tokens(x.float(), 8).tokens, full.tokens)


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_gradcheck(reduce):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    sizes = torch.rand(2, 7, 1, generator=generator, dtype=torch.float64) + 0.5
    matching = bipartite_matching(x, 3)
    x.requires_grad_(), sizes.requires_grad_()
    weights = sizes if reduce == 'mean' else None
    assert torch.autograd.gradcheck(
        lambda tokens: matching.unmerge(matching.merge(tokens, reduce=reduce, sizes=weights)), (x,)
    )
    if reduce == 'mean':
        assert torch.autograd.gradcheck(lambda size: matching.merge(x.detach(), sizes=size), (sizes,))


def test_compiles_and_never_reads_a_value_on_the_host():
    x = torch.randn(2, 9, 4)
    compiled = torch.compile(lambda y: merge_tokens(y, 3)[:2], fullgraph=True, backend='aot_eager')
    for got, expected in zip(compiled(x), merge_tokens(x, 3)[:2]):
        torch.testing.assert_close(got, expected)
    merged = merge_tokens(torch.empty(2, 9, 4, device='meta'), 3)
    assert merged.unmerge(merged.tokens).shape == (2, 9, 4)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'num_merged': 4}, ValueError, 'between 0 and 3'),
        ({'num_merged': -1}, ValueError, 'num_merged'),
        ({'num_merged': 1.0}, TypeError, 'int'),
        ({'num_protected': 7}, ValueError, 'num_protected'),
        ({'num_protected': 5, 'num_merged': 1}, ValueError, 'between 0 and 0'),
        ({'sizes': torch.ones(5, 1)}, ValueError, 'sizes'),
        ({'sizes': torch.ones(6, 2)}, ValueError, 'sizes'),
        ({'metric': torch.ones(5, 2)}, ValueError, 'metric'),
        ({'tokens': torch.ones(6, 2).long()}, TypeError, 'floating'),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        merge_tokens(**{'tokens': torch.randn(6, 2), 'num_merged': 2, **change})


def test_bad_input_of_the_closures():
    matching = bipartite_matching(torch.randn(6, 2), 2)
    with pytest.raises(ValueError, match='tokens'):
        matching.merge(torch.randn(5, 2))
    with pytest.raises(ValueError, match='merged'):
        matching.unmerge(torch.randn(6, 2))
    with pytest.raises(ValueError, match='mean, sum, max'):
        matching.merge(torch.randn(6, 2), reduce='amax')
