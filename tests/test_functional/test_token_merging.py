# SPDX-License-Identifier: Apache-2.0
"""Merging in rounds, and attention with sizes."""

import pytest
import torch

from clusterplug.functional import merge_tokens, merge_tokens_to, size_biased_attention


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_round_is_a_plain_merge():
    x = tokens(2, 20, 4)
    one, plain = merge_tokens_to(x, 13, num_protected=2), merge_tokens(x, 7, num_protected=2)
    assert torch.equal(one.tokens, plain.tokens)
    assert torch.equal(one.unmerge(one.tokens), plain.unmerge(plain.tokens))


@pytest.mark.parametrize('left', [4, 5, 9, 17, 33, 34])
def test_rounds_keep_means_and_sizes(left):
    x = tokens(3, 34, 4)
    merged = merge_tokens_to(x, left, num_protected=3)
    assert merged.tokens.shape == (3, left, 4)
    assert torch.equal(merged.tokens[:, :3], x[:, :3])
    assert (merged.sizes.sum(1) == 34).all()
    torch.testing.assert_close((merged.tokens * merged.sizes).sum(1), x.sum(1))
    number = torch.arange(left, dtype=torch.float64).view(1, left, 1).expand(3, -1, -1)
    group = merged.unmerge(number)[..., 0].long()
    mean = torch.stack([x[b][group[b] == left - 1].mean(0) for b in range(3)])
    torch.testing.assert_close(merged.tokens[:, -1], mean)


def test_given_sizes_weigh():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 5.0]]], dtype=torch.float64)
    merged = merge_tokens_to(x, 2, sizes=torch.tensor([[[3.0], [1.0], [1.0]]]))
    assert merged.sizes.flatten().tolist() == [4, 1]
    torch.testing.assert_close(merged.tokens[0, 0], torch.tensor([1.0, 0.025], dtype=torch.float64))


@pytest.mark.parametrize(
    ('count', 'error', 'message'),
    [
        (0, ValueError, 'num_tokens must lie between 3'),
        (11, ValueError, 'number of tokens, 10'),
        (2.0, TypeError, 'int'),
    ],
)
def test_bad_number(count, error, message):
    with pytest.raises(error, match=message):
        merge_tokens_to(tokens(1, 10, 2), count, num_protected=2)


@pytest.mark.parametrize('width', [6, 8, 64])
@pytest.mark.parametrize('scale', [None, 0.3])
def test_attention_equals_that_with_a_mask(width, scale):
    q, k, v = tokens(3, 2, 3, 7, width)
    sizes = tokens(2, 7, seed=1).abs() * 5 + 0.1
    sizes[0, 2] = 0
    bias = sizes.log()[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    torch.testing.assert_close(size_biased_attention(q, k, v, sizes, scale), expected, rtol=1e-9, atol=1e-9)


def test_attention_in_bfloat16_leaves_empty_tokens_out():
    q, k, v = tokens(3, 1, 2, 5, 16).bfloat16()
    sizes = torch.tensor([[1.0, 1, 1, 0, 1]])
    keep = sizes[0] > 0
    expected = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, keep], v[:, :, keep])
    torch.testing.assert_close(size_biased_attention(q, k, v, sizes), expected, rtol=2e-2, atol=2e-2)


def test_attention_gradient_and_shape():
    q, k, v = (part.clone().requires_grad_() for part in tokens(3, 1, 1, 3, 4))
    sizes = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: size_biased_attention(q, k, v, sizes), (q, k, v))
    with pytest.raises(ValueError, match='sizes must have shape'):
        size_biased_attention(q, k, v, sizes[:, :2])
