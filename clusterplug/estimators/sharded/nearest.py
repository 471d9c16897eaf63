# SPDX-License-Identifier: Apache-2.0
"""The two engines that find the nearest center of a block."""

import importlib

import numpy as np
import torch
from torch import Tensor

from clusterplug.functional.kmeans import kmeans, nearest_center

ENGINES = ('torch', 'faiss')


class TorchEngine:
    """Ours, on any device."""

    def __init__(self, device: str = 'cpu'):
        self.device = torch.device(device)

    def first_centers(self, sample: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
        """Return K centers (fp64) of a sample that fits in memory."""
        points = torch.from_numpy(sample).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        return kmeans(points, num_clusters, num_iters=10, generator=generator).centers.double().cpu().numpy()

    def nearest(self, points: np.ndarray, centers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return labels (n,) and squared distances (n,) of points (n, D) fp32, on the CPU."""
        x = torch.from_numpy(points).to(self.device)
        labels, squared = nearest_center(x, torch.from_numpy(centers).to(x))
        return labels.cpu(), squared.cpu()


class FaissEngine:
    """faiss, on all its GPUs where the installed faiss has some, else on the CPU with torch's number of threads."""

    def __init__(self, device: str = 'cpu'):
        try:
            self.faiss = importlib.import_module('faiss')
        except ImportError as error:
            raise ImportError("engine 'faiss' needs faiss; run: pip install faiss-cpu") from error
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        self.gpus = self.faiss.get_num_gpus() if hasattr(self.faiss, 'get_num_gpus') else 0

    def first_centers(self, sample: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
        """Return K centers (fp64) of a sample that fits in memory."""
        training = self.faiss.Kmeans(
            sample.shape[1], num_clusters, niter=10, seed=seed, gpu=self.gpus > 0, max_points_per_centroid=10**9,
            min_points_per_centroid=1,
        )  # fmt: skip
        training.train(sample)
        return training.centroids.astype(np.float64)

    def nearest(self, points: np.ndarray, centers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return labels (n,) and squared distances (n,) of points (n, D) fp32, on the CPU."""
        # |x|^2 - 2 x.c + |c|^2 loses digits far from the origin: search around the mean of the centers.
        middle = centers.mean(0)
        near_centers = (centers - middle).astype(np.float32)
        near_points = points - middle.astype(np.float32)
        index = self.faiss.IndexFlatL2(points.shape[1])
        if self.gpus:
            index = self.faiss.index_cpu_to_all_gpus(index)
        index.add(near_centers)
        labels = torch.from_numpy(index.search(near_points, 1)[1][:, 0])
        difference = torch.from_numpy(near_points) - torch.from_numpy(near_centers)[labels]
        return labels, difference.square().sum(-1)


def make_engine(name: str, device: str) -> TorchEngine | FaissEngine:
    """Return the engine called ``name``."""
    if name not in ENGINES:
        raise ValueError(f'engine must be one of {", ".join(ENGINES)}, got {name!r}')
    return TorchEngine(device) if name == 'torch' else FaissEngine(device)
