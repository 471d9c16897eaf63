# SPDX-License-Identifier: Apache-2.0
"""Sequences of a small physical system."""

import numpy as np


def pendulum(count: int, seed: int = 0, steps: int = 40) -> np.ndarray:
    """Swings of different size (count, steps, 2): angle in rad and rate in rad/s, one step every 0.1 s.

    Integrated by ten symplectic Euler steps each, with gravity over length 1 / s^2.
    """
    rng = np.random.default_rng(seed)
    state = np.stack([rng.uniform(-2, 2, count), rng.uniform(-1, 1, count)], 1)
    found = [state]
    for _ in range(steps - 1):
        for _ in range(10):
            rate = state[:, 1] - 0.01 * np.sin(state[:, 0])
            state = np.stack([state[:, 0] + 0.01 * rate, rate], 1)
        found.append(state)
    return np.stack(found, 1)
