# SPDX-License-Identifier: Apache-2.0
"""Digits of 8 x 8: those of scikit-learn, and as many of MNIST, on which settings can be chosen."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1] and labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(y)


def mnist(seed: int = 0) -> tuple[Tensor, Tensor]:
    """As many images drawn from ``CLUSTERPLUG_DATA``/images/mnist_t10k.npz, averaged to the same size, and labels."""
    with np.load(Path(os.environ['CLUSTERPLUG_DATA']) / 'images' / 'mnist_t10k.npz') as file:
        rows = np.random.default_rng(1000 + seed).permutation(len(file['X']))[:1797]
        x = torch.tensor(file['X'][rows], dtype=torch.float32)[:, None] / 255
        return nn.functional.adaptive_avg_pool2d(x, 8), torch.tensor(file['y'][rows].astype(int))
