# SPDX-License-Identifier: Apache-2.0
"""PrototypeHead: lengths, scores, types, several sets, what is refused."""

import math

import pytest
import torch
from torch import nn

from clusterplug.heads import ProjectionHead, PrototypeHead


def test_scores_of_a_hand_computed_case():
    head = PrototypeHead(2, 2)
    with torch.no_grad():
        head.prototypes.copy_(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(head(x), torch.tensor([[1.8, 1.6], [0.0, 0.0]]))
    assert head.normalize_() is head
    torch.testing.assert_close(head(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(head.score(head.embed(x)), head(x))
    raw = PrototypeHead(2, 2, normalize=False)
    torch.testing.assert_close(raw(x), x @ raw.prototypes.T)


def test_prototypes_start_with_length_one_and_are_trained():
    head = PrototypeHead(6, 5)
    torch.testing.assert_close(head.prototypes.norm(dim=1), torch.ones(5))
    head(torch.randn(4, 6)).square().sum().backward()
    assert head.prototypes.grad.abs().sum() > 0


def test_several_sets_share_one_embedding():
    head = PrototypeHead(6, [5, 3], projector=ProjectionHead(6, 4, (8,), norm='batch'))
    assert head.embed_dims == 4
    assert head.num_prototypes == [5, 3]
    x = torch.randn(7, 6)
    a, b = head.eval()(x)
    assert a.shape == (7, 5)
    assert b.shape == (7, 3)
    torch.testing.assert_close(b, head.embed(x) @ head.prototypes[1].T)
    with torch.no_grad():
        head.prototypes[1].mul_(3)
    head.normalize_()
    torch.testing.assert_close(head.prototypes[1].norm(dim=1), torch.ones(3))
    assert sorted(name for name in head.state_dict() if 'prototypes' in name) == ['prototypes.0', 'prototypes.1']


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_types_follow_the_input(dtype):
    head = PrototypeHead(6, 5).to(dtype)
    assert head(torch.randn(4, 6).to(dtype)).dtype == dtype


def test_scores_are_fp32_under_autocast():
    head, x = PrototypeHead(64, 5), torch.randn(4, 64)
    with torch.autocast('cpu', torch.bfloat16):
        scores = head(x)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(x))


def test_gradient():
    head = PrototypeHead(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: head.embed(x) @ c.T, (x, head.prototypes))


@pytest.mark.parametrize('value', [math.nan, math.inf, 3e38, 1e-38])
def test_one_bad_row_spoils_no_other(value):
    head, x = PrototypeHead(3, 4), torch.randn(5, 3)
    good = head(x)
    x[2] = value
    scores = head(x)
    torch.testing.assert_close(scores[[0, 1, 3, 4]], good[[0, 1, 3, 4]])
    # huge and tiny rows have a direction all the same
    assert torch.isfinite(scores[2]).all() == math.isfinite(value)
    if math.isfinite(value):
        torch.testing.assert_close(head.embed(x)[2], torch.full((3,), 3**-0.5))


def test_strides_and_empty_batches():
    head, x = PrototypeHead(3, 4), torch.randn(3, 5)
    torch.testing.assert_close(head(x.T), head(x.T.contiguous()))
    assert head(torch.zeros(0, 3)).shape == (0, 4)
    normed = PrototypeHead(3, 4, projector=ProjectionHead(3, 2, (5,), norm='batch'))
    normed(torch.zeros(0, 3)).sum().backward()
    assert normed.projector.training
    assert all(torch.isfinite(value).all() for value in normed.state_dict().values())


def test_bad_input():
    head = PrototypeHead(3, 4)
    with pytest.raises(ValueError, match=r'\(N, 3\).*got \(2, 4\)'):
        head(torch.zeros(2, 4))
    with pytest.raises(TypeError, match='floating'):
        head(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match='num_prototypes'):
        PrototypeHead(3, 0)
    with pytest.raises(ValueError, match='empty list'):
        PrototypeHead(3, [])
    with pytest.raises(ValueError, match='out_channels'):
        PrototypeHead(3, 4, projector=nn.Identity())
    with pytest.raises(TypeError, match='projector must be None, a module or a dict, got int'):
        PrototypeHead(3, 4, projector=3)
    with pytest.raises(ValueError, match='at least 2 samples'):
        PrototypeHead(3, 4, projector=ProjectionHead(3, 2, (4,), norm='batch'))(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="'layer', 'batch'"):
        ProjectionHead(3, 2, norm='group')
    with pytest.raises(RuntimeError, match='size mismatch'):
        head.load_state_dict(PrototypeHead(3, 5).state_dict())
