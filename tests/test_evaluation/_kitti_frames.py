# SPDX-License-Identifier: Apache-2.0
"""Frames of KITTI objects to compute average precision from by hand."""

import numpy as np

N = 41  # as many objects as the benchmark has recall positions: the k-th true positive sets the k-th position


def scene(count=N, name='Car', height=60.0, occluded=0, truncated=0.0, shift=(0.0, 0.0, 0.0), turn=0.0):
    """``count`` objects in a row, 20 m apart; as detections they have scores from 0.9 down."""
    k = np.arange(count)
    return dict(
        name=np.array([name] * count),
        truncated=np.full(count, truncated),
        occluded=np.full(count, occluded),
        alpha=np.full(count, 0.3) + turn,
        bbox=np.stack([100.0 * k, 0 * k, 100.0 * k + 80, 0 * k + height], 1),
        dimensions=np.tile([4.0, 1.5, 1.6], (count, 1)),
        location=np.stack([20.0 * k, 0 * k + 1.6, 0 * k + 20.0], 1) + shift,
        rotation_y=np.zeros(count) + turn,
        score=0.9 - 0.01 * k,
    )


def join(*scenes):
    return {key: np.concatenate([each[key] for each in scenes]) for key in scenes[0]}


def take(frame, chosen):
    return {key: values[chosen] for key, values in frame.items()}


EMPTY = take(scene(1), slice(0))
