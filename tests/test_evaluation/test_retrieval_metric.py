# SPDX-License-Identifier: Apache-2.0
"""Ranks by counting against a plain loop: ties, several captions, chunks; the metric in mmengine, and on two ranks."""

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

pytest.importorskip('mmengine', reason='needs mmengine')

from clusterplug.evaluation import RetrievalMetric, rank_summary, ranks_of_targets, retrieval_ranks
from clusterplug.testing import run_gloo


def loop_rank(row, target):
    """The average of the best and the worst rank that the target can take among equal scores."""
    best = 1 + sum(float(score) > float(row[target]) for score in row)
    worst = sum(float(score) >= float(row[target]) for score in row)
    return (best + worst) / 2


def loop_ranks(text, video, owner):
    """Both directions by loops over queries and groups, with numpy alone."""
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    video = video / np.linalg.norm(video, axis=1, keepdims=True)
    scores = text @ video.T
    text_ranks = [loop_rank(row, target) for row, target in zip(scores, owner)]
    asking = sorted(set(owner))
    video_ranks = []
    for index, group in enumerate(asking):
        best = [max(scores[i, group] for i in range(len(owner)) if owner[i] == other) for other in asking]
        video_ranks.append(loop_rank(best, index))
    return text_ranks, video_ranks


@hypothesis.given(st.integers(1, 12), st.integers(0, 20), st.integers(1, 5), st.integers(0, 10**6))
@hypothesis.settings(deadline=None, max_examples=60)
def test_equals_the_loop(videos, extra, chunk, seed):
    """Whole numbers of few values give many exact ties; every chunk size gives the same ranks."""
    generator = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(videos), generator.integers(0, videos, extra)])
    generator.shuffle(owner)
    # one of four corners: unit vectors and scores without rounding
    corners = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]], np.float64)
    text, video = corners[generator.integers(0, 4, len(owner))], corners[generator.integers(0, 4, videos)]
    expected = loop_ranks(text, video, owner)
    for size in (chunk, None):
        found = retrieval_ranks(torch.tensor(text), torch.tensor(video), torch.tensor(owner), size)
        assert found[0].tolist() == expected[0]
        assert found[1].tolist() == expected[1]


def test_equals_the_loop_on_real_numbers():
    generator = torch.Generator().manual_seed(0)
    text, video = torch.randn(60, 8, generator=generator), torch.randn(20, 8, generator=generator)
    owner = torch.cat([torch.arange(20), torch.randint(0, 20, (40,), generator=generator)])
    expected = loop_ranks(text.double().numpy(), video.double().numpy(), owner.numpy())
    for dtype in (torch.float32, torch.float64):
        found = retrieval_ranks(text.to(dtype), video.to(dtype), owner, 7)
        assert found[0].tolist() == expected[0]
        assert found[1].tolist() == expected[1]


def test_videos_without_a_text_are_distractors_of_the_texts():
    eye = torch.eye(3)
    text_ranks, video_ranks = retrieval_ranks(eye[[2]] + 2 * eye[[0]], eye, torch.tensor([2]))
    assert text_ranks.tolist() == [2.0]
    assert video_ranks.tolist() == [1.0]


def test_identity_gives_rank_one():
    summary = rank_summary(ranks_of_targets(torch.eye(50), torch.arange(50)))
    assert summary == {'R1': 100.0, 'R5': 100.0, 'R10': 100.0, 'MdR': 1.0, 'MnR': 1.0}


def test_shifted_order_gives_known_ranks():
    """Row i scores column j by how far j is behind i - 2 around a circle: the right column is third."""
    number = torch.arange(9)
    scores = -((number[None] - number[:, None] + 2) % 9).double()
    assert ranks_of_targets(scores, number).tolist() == [3.0] * 9


def test_all_equal_is_the_middle_and_not_a_hit():
    """The official count gives R@1 25 with 16 entries for this matrix of four queries."""
    ranks = ranks_of_targets(torch.ones(4, 4), torch.arange(4))
    assert ranks.tolist() == [2.5] * 4
    assert rank_summary(ranks)['R1'] == 0


def test_nan_and_infinite_scores():
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[0.5, nan, -inf], [0.5, nan, 0.1], [inf, 0.2, 0.3]])
    assert ranks_of_targets(scores, torch.tensor([0, 1, 2])).tolist() == [1.0, 3.0, 2.0]


def test_median_of_even_and_odd():
    assert rank_summary(torch.tensor([9.0, 1.0]))['MdR'] == 5
    assert rank_summary(torch.tensor([9.0, 1.0, 2.0]))['MdR'] == 2


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ((torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 1])), ValueError, 'same channels'),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 2])), ValueError, 'numbers from 0 to 1'),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0])), ValueError, 'shape'),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0])), TypeError, 'int64'),
        ((torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), torch.tensor([0, 1])), TypeError, 'floating'),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]), 0), ValueError, 'chunk_size'),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        retrieval_ranks(*arguments)


def samples(seed=0, videos=7):
    """Videos with one to four captions each; the fifth is unreadable."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(videos):
        count = int(torch.randint(1, 5, (1,), generator=generator))
        sample = dict(
            video_id=f'video{index}', video_feature=torch.randn(6, generator=generator),
            text_features=torch.randn(count, 6, generator=generator),
        )  # fmt: skip
        found.append(sample if index != 4 else dict(video_id='video4', valid=False, problem='truncated'))
    return found


def test_metric_in_mmengine():
    metric = RetrievalMetric()
    metric.process({}, samples())
    found = metric.evaluate(7)
    readable = [sample for sample in samples() if sample.get('valid', True)]
    owner = np.repeat(np.arange(6), [len(sample['text_features']) for sample in readable])
    text = torch.cat([sample['text_features'] for sample in readable]).double().numpy()
    video = torch.stack([sample['video_feature'] for sample in readable]).double().numpy()
    ranks = [np.array(each) for each in loop_ranks(text, video, owner)]
    for direction, values in zip(('t2v', 'v2t'), ranks):
        assert found[f'retrieval/{direction}/MnR'] == pytest.approx(values.mean())
        assert found[f'retrieval/{direction}/MdR'] == np.median(values)
        for k in (1, 5, 10):
            assert found[f'retrieval/{direction}/R{k}'] == pytest.approx(100 * (values <= k).mean())
    assert (found['retrieval/videos'], found['retrieval/texts'], found['retrieval/unreadable']) == (6, len(text), 1)


def test_one_direction_and_bad_results():
    metric = RetrievalMetric('t2v')
    metric.process({}, samples())
    assert not any('v2t' in name for name in metric.evaluate(7))
    with pytest.raises(ValueError, match='directions must be some of'):
        RetrievalMetric(('text',))
    metric.process({}, [*samples()[:2], samples()[0]])
    with pytest.raises(ValueError, match='more than one of video0'):
        metric.evaluate(3)
    metric = RetrievalMetric()
    metric.process({}, [dict(video_id='a', valid=False)])
    with pytest.raises(ValueError, match='no video could be evaluated'):
        metric.evaluate(1)


def evaluate_a_part(rank, world_size):
    """Samples as mmengine's sampler deals them: in turn, the first repeated to fill the second rank up."""
    found = samples()
    metric = RetrievalMetric(chunk_size=2)
    padded = [*found, found[0]]
    metric.process({}, padded[rank::world_size])
    return metric.evaluate(len(found))


def test_two_ranks_equal_one():
    alone = RetrievalMetric()
    alone.process({}, samples())
    expected = alone.evaluate(7)
    for found in run_gloo(evaluate_a_part, 2):
        assert found == expected
