# SPDX-License-Identifier: Apache-2.0
"""KITTI's average precision: cases computed by hand, and a plain program written from the benchmark's rules."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from _kitti_frames import EMPTY, N, join, scene, take

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug.evaluation.kitti import MEASURES, kitti_average_precision
from clusterplug.testing.plain_geometry import clip


@pytest.fixture(autouse=True)
def fast_host(monkeypatch):
    """mmdet3d collects garbage after each measure, half a second each in a large process."""
    from mmdet3d.evaluation.functional.kitti_utils import eval as host

    monkeypatch.setattr(host, 'gc', SimpleNamespace(collect=lambda: None))


def evaluate(truth, found, name='Car'):
    result = kitti_average_precision([truth], [found], [name])[name]
    return {measure: {key: values.tolist() for key, values in both.items()} for measure, both in result.items()}


def sampled(precision):
    """R11 and R40 of precisions at the 41 positions, after the benchmark's running maximum from the right."""
    precision = np.zeros(41) + np.pad(precision, (0, 41 - len(precision)))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return dict(R11=100 * envelope[::4].sum() / 11, R40=100 * envelope[1:].sum() / 40)


def check(result, measures, expected, difficulties=(0, 1, 2)):
    for measure in measures:
        for key, value in expected.items():
            got = [result[measure][key][d] for d in difficulties]
            assert got == pytest.approx([value] * len(got), abs=1e-6), (measure, key)


def test_perfect():
    check(evaluate(scene(), scene()), MEASURES, dict(R11=100, R40=100))


@pytest.mark.parametrize(('name', 'bound'), [('Car', 0.7), ('Pedestrian', 0.5), ('Cyclist', 0.5)])
def test_shifted_to_both_sides_of_the_least_overlap(name, bound):
    """Moved by d along its length L, a box keeps the overlap (L - d) / (L + d)."""
    limit = 4 * (1 - bound) / (1 + bound)
    inside = evaluate(scene(name=name), scene(name=name, shift=(limit - 0.001, 0, 0)), name)
    check(inside, MEASURES, dict(R11=100, R40=100))
    outside = evaluate(scene(name=name), scene(name=name, shift=(limit + 0.001, 0, 0)), name)
    check(outside, ['bev', '3d'], dict(R11=0, R40=0))
    check(outside, ['bbox', 'aos'], dict(R11=100, R40=100))  # the boxes in the image did not move
    raised = evaluate(scene(name=name), scene(name=name, shift=(0, 1.4, 0)), name)
    check(raised, ['bev'], dict(R11=100, R40=100))
    check(raised, ['3d'], dict(R11=0, R40=0))


def test_missed():
    """20 of 41 found: positions 0 to 19 are reached."""
    result = evaluate(scene(), take(scene(), slice(20)))
    check(result, MEASURES, sampled(np.ones(20)))
    assert result['3d']['R40'][0] == pytest.approx(100 * 19 / 40)
    assert result['3d']['R11'][0] == pytest.approx(100 * 5 / 11)


def test_duplicates():
    """The k-th object comes with k - 1 second boxes of higher scores: precision k / (2 k - 1)."""
    twice = join(scene(), {**scene(), 'score': scene()['score'] - 0.001})
    k = np.arange(1, N + 1)
    result = evaluate(scene(), twice)
    check(result, ['bbox', 'bev', '3d'], sampled(k / (2 * k - 1)))
    assert result['3d']['R40'][0] == pytest.approx(100 * (k / (2 * k - 1))[1:].mean())


def test_false_positives_between():
    """A box in the empty after every hit, of a higher score than the next: the same precision."""
    wrong = {**scene(shift=(0, 0, 500)), 'bbox': scene()['bbox'] + [0, 500, 0, 500], 'score': scene()['score'] - 0.001}
    k = np.arange(1, N + 1)
    check(evaluate(scene(), join(scene(), wrong)), MEASURES, sampled(k / (2 * k - 1)))


@pytest.mark.parametrize(('turn', 'similarity'), [(math.pi, 0.0), (math.pi / 2, 0.5), (math.pi / 3, 0.75)])
def test_orientation(turn, similarity):
    result = evaluate(scene(), {**scene(turn=turn), 'rotation_y': np.full(N, math.pi)})
    check(result, ['aos'], dict(R11=100 * similarity, R40=100 * similarity))
    check(result, ['bbox', 'bev', '3d'], dict(R11=100, R40=100))  # also for boxes turned by half a turn


@pytest.mark.parametrize(
    ('options', 'first'),
    [
        (dict(), 0),
        (dict(occluded=1), 1),
        (dict(occluded=2), 2),
        (dict(occluded=3), 3),
        (dict(truncated=0.15), 0),
        (dict(truncated=0.2), 1),
        (dict(truncated=0.4), 2),
        (dict(truncated=0.6), 3),
        (dict(height=40.5), 0),
        (dict(height=40.0), 1),
        (dict(height=25.0), 3),
    ],
)
def test_difficulties(options, first):
    """Objects count from their difficulty on; before, neither they nor boxes on them do."""
    hard, easy = scene(**options), scene(shift=(0, 0, 100))
    easy['bbox'] = easy['bbox'] + [0, 200, 0, 200]
    alone, both = evaluate(hard, hard), evaluate(join(hard, easy), join(hard, easy))
    for difficulty in range(3):
        expected = 100 if difficulty >= first else 0
        check(alone, MEASURES, dict(R11=expected, R40=expected), [difficulty])
        check(both, MEASURES, dict(R11=100, R40=100), [difficulty])
    missed = evaluate(join(hard, easy), easy)  # the hard ones are missed
    for difficulty in range(3):
        half = sampled(np.ones(21 if difficulty >= first else 41))
        check(missed, ['3d', 'bbox'], half, [difficulty])


def test_regions_to_leave_out():
    """A false box in a DontCare region counts from above and in space, but not in the image."""
    wrong = {**scene(shift=(0, 0, 500)), 'bbox': scene()['bbox'] + [0, 500, 0, 500], 'score': scene()['score'] - 0.001}
    region = take(scene(name='DontCare'), slice(1))
    region['bbox'] = np.array([[-10.0, 490, 5000, 600]])
    region['location'] = np.full((1, 3), -1000.0)
    k = np.arange(1, N + 1)
    result = evaluate(join(scene(), region), join(scene(), wrong))
    check(result, ['bbox', 'aos'], dict(R11=100, R40=100))
    check(result, ['bev', '3d'], sampled(k / (2 * k - 1)))


@pytest.mark.parametrize(('name', 'neighbour'), [('Car', 'Van'), ('Pedestrian', 'Person_sitting')])
def test_similar_classes_are_neither_hit_nor_fault(name, neighbour):
    other = scene(name=neighbour, shift=(0, 0, 100))
    other['bbox'] = other['bbox'] + [0, 200, 0, 200]
    found = join(scene(name=name), {**other, 'name': np.array([name] * N)})
    check(evaluate(join(scene(name=name), other), found, name), MEASURES, dict(R11=100, R40=100))


def test_frames_without_objects_and_without_detections():
    truth, found = [EMPTY, scene(), EMPTY], [take(scene(), slice(1)), scene(), EMPTY]
    found[0]['score'] = np.array([0.95])  # above all others: one false box at every position
    result = kitti_average_precision(truth, found, ['Car'])['Car']
    k = np.arange(1, N + 1)
    check({m: {key: v.tolist() for key, v in both.items()} for m, both in result.items()}, ['3d', 'bbox'],
          sampled(k / (k + 1)))  # fmt: skip
    nothing = kitti_average_precision([scene()], [EMPTY], ['Car'])['Car']
    assert nothing['3d']['R40'].tolist() == [0, 0, 0]
    assert np.isnan(nothing['aos']['R40']).all()
    assert kitti_average_precision([EMPTY], [scene()], ['Car'])['Car']['3d']['R11'].tolist() == [0, 0, 0]


# ---- the benchmark's rules, once more, in plain Python


def overlap_2d(a, b, of_first=False):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    first, second = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (first if of_first else first + second - width * height)


def overlap_3d(a, b, space):
    ground = [(x, z, length, width, -r) for (x, _, z), (length, _, width), r in (a, b)]
    common = clip(*ground)
    size = [length * width for _, (length, _, width), _ in (a, b)]
    if space:
        (_, low_a, _), (_, height_a, _), _ = a
        (_, low_b, _), (_, height_b, _), _ = b
        common *= max(0.0, min(low_a, low_b) - max(low_a - height_a, low_b - height_b))
        size = [size[0] * height_a, size[1] * height_b]
    return common / (sum(size) - common)


def plain_average_precision(truth, found, name, measure, difficulty, least):
    limits = [(40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5)][difficulty]
    similar = {'Car': 'Van', 'Pedestrian': 'Person_sitting'}.get(name)
    frames = []
    for t, d in zip(truth, found, strict=True):
        objects, boxes = [], []
        for i in range(len(t['name'])):
            hard = (
                t['bbox'][i][3] - t['bbox'][i][1] <= limits[0]
                or t['occluded'][i] > limits[1]
                or t['truncated'][i] > limits[2]
            )
            if t['name'][i] == name or t['name'][i] == similar:
                objects.append((i, t['name'][i] == similar or hard))
        for j in range(len(d['name'])):
            if abs(d['bbox'][j][3] - d['bbox'][j][1]) < limits[0]:
                boxes.append((j, True))
            elif d['name'][j] == name:
                boxes.append((j, False))

        def overlap(i, j, t=t, d=d):
            if measure in ('bbox', 'aos'):
                return overlap_2d(d['bbox'][j], t['bbox'][i])
            box = [(f['location'][n], f['dimensions'][n], f['rotation_y'][n]) for f, n in ((d, j), (t, i))]
            return overlap_3d(*box, measure == '3d')

        frames.append((t, d, objects, boxes, {(i, j): overlap(i, j) for i, _ in objects for j, _ in boxes}))
    valid = sum(not ignored for f in frames for _, ignored in f[2])
    scores = []
    for _, d, objects, boxes, overlaps in frames:
        taken = set()
        for i, ignored in objects:
            free = [(j, skip) for j, skip in boxes if j not in taken and overlaps[i, j] > least]
            if free:
                j, skip = max(free, key=lambda each: d['score'][each[0]])
                taken.add(j)
                if not ignored and not skip:
                    scores.append(d['score'][j])
    thresholds, recall = [], 0.0
    scores = sorted(scores, reverse=True)
    for n, score in enumerate(scores):
        left, right = (n + 1) / valid, (n + 2) / valid if n < len(scores) - 1 else (n + 1) / valid
        if right - recall < recall - left and n < len(scores) - 1:
            continue
        thresholds.append(score)
        recall += 1 / 40
    values = [count_at(frames, threshold, measure, least) for threshold in thresholds]
    return sampled(np.array(values)) if values else dict(R11=0.0, R40=0.0)


def count_at(frames, threshold, measure, least):
    """Precision, or mean similarity, of the detections from a score on."""
    hits, wrong, similarity = 0, 0, 0.0
    for t, d, objects, boxes, overlaps in frames:
        taken, above = set(), [(j, skip) for j, skip in boxes if d['score'][j] >= threshold]
        for i, ignored in objects:
            free = [(overlaps[i, j], j, skip) for j, skip in above if j not in taken and overlaps[i, j] > least]
            real = [each for each in free if not each[2]]
            if not free:
                continue
            _, j, skip = max(real, key=lambda each: each[0]) if real else free[0]
            taken.add(j)
            if not ignored and not skip:
                hits += 1
                similarity += (1 + math.cos(t['alpha'][i] - d['alpha'][j])) / 2
        regions = [t['bbox'][i] for i in range(len(t['name'])) if t['name'][i] == 'DontCare']
        for j, skip in above:
            excused = measure in ('bbox', 'aos') and any(overlap_2d(d['bbox'][j], r, True) > least for r in regions)
            wrong += j not in taken and not skip and not excused
    if hits + wrong == 0:
        return 0.0
    return (similarity if measure == 'aos' else hits) / (hits + wrong)


def random_frames(rng):
    truth, found = [], []
    for _ in range(6):
        count = int(rng.integers(0, 7))
        t = scene(count)
        t['name'] = rng.choice(['Car', 'Van', 'DontCare', 'Pedestrian'], count, p=[0.6, 0.1, 0.1, 0.2])
        t['occluded'], t['truncated'] = rng.integers(0, 4, count), rng.choice([0.0, 0.2, 0.4, 0.6], count)
        t['bbox'][:, 3] = rng.choice([20.0, 30.0, 60.0], count)
        t['rotation_y'], t['alpha'] = rng.uniform(-3, 3, count), rng.uniform(-3, 3, count)
        chosen = rng.integers(0, count, int(1.5 * count)) if count else np.zeros(0, int)
        d = take(t, chosen)
        d['name'] = rng.choice(['Car', 'Pedestrian'], len(chosen), p=[0.8, 0.2])
        d['score'] = rng.permutation(10_000)[: len(chosen)] / 10_000
        d['location'] = d['location'] + rng.normal(0, 0.15, d['location'].shape)
        d['bbox'] = d['bbox'] + rng.normal(0, 4, d['bbox'].shape)
        d['alpha'] = d['alpha'] + rng.normal(0, 0.5, len(chosen))
        truth.append(t)
        found.append(d)
    return truth, found


def test_equals_the_plain_program():
    compared = 0
    for seed in range(8):
        truth, found = random_frames(np.random.default_rng(seed))
        result = kitti_average_precision(truth, found, ['Car', 'Pedestrian'])
        for name, least in (('Car', 0.7), ('Pedestrian', 0.5)):
            for measure in MEASURES:
                for difficulty in range(3):
                    expected = plain_average_precision(truth, found, name, measure, difficulty, least)
                    for key, value in expected.items():
                        got = result[name][measure][key][difficulty]
                        assert got == pytest.approx(value, abs=1e-6), (seed, name, measure, difficulty, key)
                        compared += value > 0
    assert compared > 40


def test_bad_input():
    with pytest.raises(ValueError, match=r'classes must be some of Car, .*got .*Truck'):
        kitti_average_precision([scene()], [scene()], ['Truck'])
    with pytest.raises(ValueError, match=r'the same frames.*got 2 and 1'):
        kitti_average_precision([scene()] * 2, [scene()])
    with pytest.raises(ValueError, match='frame 0 of ground_truth lacks bbox'):
        kitti_average_precision([{k: v for k, v in scene().items() if k != 'bbox'}], [scene()])
    with pytest.raises(ValueError, match=r'bbox of frame 0 of detections must have shape \(41, 4\), got \(40, 4\)'):
        kitti_average_precision([scene()], [{**scene(), 'bbox': scene()['bbox'][:40]}])
