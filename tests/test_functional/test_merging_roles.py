# SPDX-License-Identifier: Apache-2.0
"""Roles of bipartite matching: those of the authors, counted over the whole sequence."""

import pytest
import torch

from clusterplug.functional import bipartite_matching, merge_tokens_to
from clusterplug.functional.tokens.merging import most_merged


@pytest.mark.parametrize(('num_tokens', 'protected'), [(64, 0), (65, 1), (66, 2), (197, 1), (198, 2), (21, 5), (22, 4)])
def test_even_tokens_go_into_odd_ones_and_protected_ones_stay(num_tokens, protected):
    x = torch.randn(3, num_tokens, 8, generator=torch.Generator().manual_seed(num_tokens))
    most = most_merged(num_tokens, protected)
    match = bipartite_matching(x, most, num_protected=protected)
    for row in match.target.tolist():
        groups = {}
        for token, place in enumerate(row):
            groups.setdefault(place, []).append(token)
        for group in groups.values():
            if len(group) > 1:
                assert min(group) >= protected
                assert sum(token % 2 for token in group) == 1  # one destination, all others sources
        alone = [group[0] for group in groups.values() if len(group) == 1]
        assert set(range(protected)) <= set(alone)
        assert not any(token % 2 == 0 for token in alone if token >= protected)


def test_by_hand_with_a_class_token():
    # Behind the class token 1, 3 are destinations, 2, 4 sources: 2 is parallel to 3, 4 to 1.
    x = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    assert bipartite_matching(x, 2, num_protected=1).target.tolist() == [0, 1, 2, 2, 1]
    assert most_merged(5, 1) == 2
    with pytest.raises(ValueError, match='between 0 and 2 for 5 tokens'):
        bipartite_matching(x, 3, num_protected=1)
    # Two protected ones: 2, 4 are sources and 3 the destination.
    assert bipartite_matching(x, 2, num_protected=2).target.tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize('protected', [0, 1, 2, 3])
def test_rounds_reach_every_number(protected):
    for num_tokens in range(protected + 1, 12):
        x = torch.randn(num_tokens, 4, generator=torch.Generator().manual_seed(0))
        for left in range(protected + 1, num_tokens + 1):
            merged = merge_tokens_to(x, left, num_protected=protected)
            assert merged.tokens.shape == (left, 4)
            assert torch.equal(merged.tokens[:protected], x[:protected])
            assert merged.sizes.sum() == num_tokens


@pytest.mark.parametrize(('num_tokens', 'number', 'protected'), [(64, 20, 0), (65, 20, 1), (50, 13, 2), (17, 8, 1)])
def test_the_same_groups_as_a_loop_over_pairs_in_float64(num_tokens, number, protected):
    x = torch.randn(num_tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    unit = x / x.norm(dim=1, keepdim=True)
    free = range(protected, num_tokens)
    best = []
    for source in (n for n in free if n % 2 == 0):
        score, destination = max((float(unit[source] @ unit[n]), n) for n in free if n % 2)
        best.append((-score, source, destination))
    goes = {source: destination for _, source, destination in sorted(best)[:number]}
    target = bipartite_matching(x, number, num_protected=protected).target.tolist()
    stay = [n for n in range(num_tokens) if n not in goes]
    assert [stay[place] for place in target] == [goes.get(n, n) for n in range(num_tokens)]
