# SPDX-License-Identifier: Apache-2.0
"""Which frames and tokens are taken: the middles of the authors' floating-point rule, random ones over everything."""

import math

import numpy as np
import pytest
import torch

from clusterplug.datasets.video.sampling import sample_frames
from clusterplug.functional.tokens.segment_tokens import sparse_token_index


def middles(total, count):
    """One number after the other, as a program without arrays does it."""
    return [math.floor(total / count / 2.0 + total / count * number) for number in range(count)]


@pytest.mark.parametrize('count', [1, 2, 7, 12, 20, 60])
def test_middle_frames(count):
    for total in [*range(count, count + 200), 1023, 4096, 99_991]:
        frames, mask = sample_frames(total, count)
        assert frames.tolist() == middles(total, count), total
        assert mask.all()
        assert frames.dtype == np.int64


def test_middle_frames_by_hand():
    assert sample_frames(13, 12)[0].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert sample_frames(35, 12)[0].tolist() == [1, 4, 7, 10, 13, 16, 18, 21, 24, 27, 30, 33]
    assert sample_frames(12, 12)[0].tolist() == list(range(12))
    assert [part.tolist() for part in sample_frames(1, 3)] == [[0, 0, 0], [True, False, False]]


@pytest.mark.parametrize(('tokens', 'kept'), [(588, 160), (147, 49), (784, 160), (49, 49), (98, 97), (441, 1)])
def test_middle_tokens(tokens, kept):
    found = sparse_token_index(tokens, kept, 3, False, torch.device('cpu'))
    assert found.tolist() == [middles(tokens, kept)] * 3
    compiled = torch.compile(sparse_token_index, backend='eager', fullgraph=True)
    assert torch.equal(compiled(tokens, kept, 3, False, torch.device('cpu')), found)


@pytest.mark.parametrize(('total', 'count'), [(35, 12), (59, 30), (12, 12)])
def test_random_ones_reach_everything_and_rise(total, count):
    generator = np.random.default_rng(0)
    drawn = np.stack([sample_frames(total, count, True, generator)[0] for _ in range(400)])
    torch.manual_seed(0)
    tokens = sparse_token_index(total, count, 400, True, torch.device('cpu')).numpy()
    for found in (drawn, tokens):
        assert (np.diff(found) > 0).all()
        assert set(found.ravel()) == set(range(total))


def test_bad_numbers():
    for total, count in ((0, 3), (3, 0), (-1, 2)):
        with pytest.raises(ValueError, match='at least 1'):
            sample_frames(total, count)
    with pytest.raises(TypeError, match='count must be a whole number'):
        sample_frames(5, 2.5)
    with pytest.raises(ValueError, match='num_clusters must lie between 1'):
        sparse_token_index(4, 5, 1, False, torch.device('cpu'))
