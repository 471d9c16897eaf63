# SPDX-License-Identifier: Apache-2.0
"""Objects of classes that a network was not trained on: label them from few examples, or find the classes."""

import numpy as np
import torch
from _city_segmentation import LINEAR, settings, trained

from clusterplug.estimators import (
    KMeans,
    NovelClassKMeans,
    NovelClassSpectral,
    ProjectionBasedNCD,
    TransductiveFewShot,
)
from clusterplug.evaluation.few_shot import FewShotEpisodes
from clusterplug.functional import align_by_transport, clustering_accuracy, nearest_center

UNSEEN = ('bicycle', 'motorcycle', 'truck', 'bus', 'person', 'pole', 'traffic-sign')
FEW_SHOT = ('nearest prototype', 'OpTA', 'k-means', 'Laplacian 0.7')
NOVEL = ('k-means', 'NovelClassKMeans', 'NovelClassSpectral', 'ProjectionBasedNCD')
QUERIES, EPISODES = 10, 1000


class Unseen:
    """One network for each seed, that ignores the points of some classes; its features of their objects."""

    name, methods = 'unseen', ('objects',)

    def __init__(self, options, seed: int, tool, with_validation):
        self.options, self.seed, self.tool, self.with_validation = options, seed, tool, with_validation
        self.folder = options.out / f'unseen-city{options.city}-{options.steps}-seed{seed}'

    def config(self, method: str):
        data = self.options.out / f'city{self.options.city}'
        return settings(LINEAR, data, self.folder, self.options.steps, self.seed, unseen=UNSEEN)

    def objects(self) -> dict[str, np.ndarray]:
        """Features and true classes of the objects of the test streets, kept."""
        file = self.folder / 'objects.npz'
        if not file.is_file():
            discover = self.tool('discover_classes')
            config = self.config('')
            model, _ = trained(config, self.options.steps)
            config.test_dataloader.dataset.metainfo = dict(config.metainfo)  # with the classes that it did not learn
            dataset = discover.labelled_set(self.with_validation(config), 'val')
            arguments = discover.parse_arguments(['config', 'checkpoint', '--min-points', '10'])
            found, x = discover.collect(model, dataset, len(dataset), [], arguments)
            np.savez(file, x=x, truth=np.array([each['label'] for each in found]))
        return dict(np.load(file))

    def measure(self, method: str) -> dict:
        """Accuracies of few-shot episodes and of novel class discovery on the objects."""
        names = self.config('').class_names
        found = self.objects()
        x, truth = found['x'][found['truth'] >= 0], found['truth'][found['truth'] >= 0]
        unseen = np.array([names.index(name) for name in UNSEEN])
        enough = [k for k in unseen if (truth == k).sum() >= QUERIES + 5]
        known = ~np.isin(truth, unseen)
        result = dict(counts={names[k]: int((truth == k).sum()) for k in unseen}, known=int(known.sum()))
        rows = np.isin(truth, enough)
        base = torch.from_numpy(x[known].mean(0)).float()
        features, labels = torch.from_numpy(x[rows]).float(), torch.from_numpy(truth[rows])
        for shots in (1, 5):
            for name in FEW_SHOT:
                episodes = FewShotEpisodes(
                    min(5, len(enough)), shots, QUERIES, EPISODES, classifier=classifier(name, base, shots),
                    seed=self.seed,
                )  # fmt: skip
                result[f'{name}, {shots}'] = episodes(features, labels).mean
        result['ways'] = min(5, len(enough))
        mean, scale = x[known].mean(0), x[known].std(0) + 1e-9
        z, y = (x[known | rows] - mean) / scale, np.where(known, truth, -1)[known | rows]
        for name in NOVEL:
            labels_ = np.asarray(discovered(name, len(enough), self.seed, z, y))
            pair = (torch.from_numpy(np.asarray(each)).long() for each in (truth[known | rows][y < 0], labels_))
            result[f'novel, {name}'] = float(clustering_accuracy(*pair))
        return result


def classifier(name: str, mean: torch.Tensor, shots: int):
    """``(support, labels, queries) -> ways``."""
    if name in ('k-means', 'Laplacian 0.7'):
        return TransductiveFewShot(strength=0.0 if name == 'k-means' else 0.7, base_mean=mean).classify

    def classify(support, labels, queries):
        support, queries = (torch.nn.functional.normalize(each - mean, dim=-1) for each in (support, queries))
        member = torch.nn.functional.one_hot(labels).float()
        prototypes = member.mT @ support / member.sum(1).unsqueeze(-1)
        if name == 'OpTA':
            options = dict(num_passes=5) if shots == 1 else dict(num_passes=1, mix=0.7)
            prototypes = align_by_transport(prototypes, queries, **options)
        return nearest_center(queries, prototypes)[0]

    return classify


def discovered(name: str, number: int, seed: int, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Clusters of the rows of ``z`` where ``y`` is -1."""
    if name == 'k-means':
        return KMeans(number, n_init=10, random_state=seed).fit(z[y < 0]).labels_
    model = {
        'NovelClassKMeans': NovelClassKMeans, 'NovelClassSpectral': NovelClassSpectral,
        'ProjectionBasedNCD': ProjectionBasedNCD,
    }[name](number, random_state=seed)  # fmt: skip
    return model.fit(z, y).labels_[y < 0]
