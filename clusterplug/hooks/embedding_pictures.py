# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model without labels learned, at each validation: embeddings, and samples of prototypes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count
from clusterplug.registry import HOOKS

_SHOWN = 1.0  # meters around a point that are drawn in its color


@HOOKS.register_module()
class EmbeddingPicturesHook(Hook):
    """Draw the embeddings of the validation set on a plane, and the samples that are nearest to each prototype.

    ``embeddings.png``: colored by label and by prototype. ``prototypes.png``: a row for each of the prototypes with
    most samples, with the samples of the highest score among those that have it as their best; images as they are,
    points of scans from above, with a meter around them in color, of a sequence of slices the middle one. Of models
    without prototypes only the first one is drawn. Files are of rank 0 and its share of the samples; a picture that
    fails is a warning, and the training goes on.

    Args:
        out_dir: Folder; None: ``embeddings`` in the folder of the log. While training ``epoch_3_`` (``iter_300_`` where
            no epochs are counted) is put before the names.
        field: What is drawn: ``'features'`` of the backbone or ``'embeddings'`` of the head.
        method: As of :func:`~clusterplug.visualization.save_embedding_map`: ``'pca'`` or ``'tsne'``.
        max_samples: At most so many rows in the map, drawn at random.
        num_prototypes: Rows of the sheet.
        num_nearest: Columns of the sheet.
        class_names: By default those of the data set, where it has some.
        ignore_index: Label of rows that are left out, besides negative ones (which are gray).
        seed: Of the draw, and of t-SNE.

    Raises:
        ValueError: A bad option.

    Example:
        ``custom_hooks = [dict(type='clusterplug.EmbeddingPicturesHook')]``
    """

    priority = 'LOW'

    def __init__(
        self,
        out_dir: str | os.PathLike | None = None,
        field: str = 'embeddings',
        method: str = 'pca',
        max_samples: int = 2000,
        num_prototypes: int = 10,
        num_nearest: int = 8,
        class_names: Sequence[str] | None = None,
        ignore_index: int | None = None,
        seed: int = 0,
    ):
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.field = check_choice(field, 'field', ('features', 'embeddings'))
        self.method = check_choice(method, 'method', ('pca', 'tsne'))
        self.max_samples = check_count(max_samples, 'max_samples', 3)
        self.num_prototypes = check_count(num_prototypes, 'num_prototypes', 1)
        self.num_nearest = check_count(num_nearest, 'num_nearest', 1)
        self.class_names, self.ignore_index = class_names, ignore_index
        self.seed = check_count(seed, 'seed')
        self._training = False
        self._forget()

    def before_train(self, runner) -> None:
        """Validations belong to a training from here."""
        self._training = True

    def after_train(self, runner) -> None:
        """And no more."""
        self._training = False

    def before_val_epoch(self, runner) -> None:
        """Begin anew."""
        self._forget()

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep the rows of the batch, and the nearest samples so far of each prototype."""
        if not is_main_process():
            return
        for number, sample in enumerate(outputs or []):
            x = sample.get(self.field)
            if x is None:
                raise ValueError(
                    f'{type(self).__name__} needs {self.field} in the predictions, got {sorted(sample.keys())}; a '
                    f'MultiViewModel gives features and embeddings'
                )
            labels = sample.get('labels', sample.get('gt_label'))
            labels = torch.full((len(x),), -1) if labels is None else torch.as_tensor(labels).reshape(-1).long().cpu()
            best = sample.get('prototype')
            best = torch.full((len(x),), -1) if best is None else best.cpu()
            kept = torch.isfinite(x).all(1).cpu()
            if self.ignore_index is not None:
                kept &= labels != self.ignore_index
            self._rows.append((x.float().cpu()[kept], labels[kept], best[kept]))
            if sample.get('prototype_score') is not None:
                self._keep_nearest(best, sample.get('prototype_score').float().cpu(), kept, data_batch, number)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Draw."""
        if not is_main_process() or not self._rows:
            return
        try:
            self._draw(runner)
        except Exception as error:  # a full disk: the training is worth more than its pictures
            runner.logger.warning(f'{type(self).__name__} could not draw: {type(error).__name__}: {error}')
        self._forget()

    def _forget(self) -> None:
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._nearest: dict[int, list[tuple[float, np.ndarray]]] = {}

    def _keep_nearest(self, best: Tensor, scores: Tensor, kept: Tensor, data_batch, number: int) -> None:
        """Of this sample at most one row a prototype, so that a sheet does not show one scan many times."""
        scores = scores.masked_fill(~kept, -torch.inf)
        for prototype in best[kept].unique().tolist():
            row = int(scores.masked_fill(best != prototype, -torch.inf).argmax())
            score, shown = float(scores[row]), self._nearest.setdefault(prototype, [])
            if len(shown) < self.num_nearest or score > shown[-1][0]:
                shown.append((score, picture_of(data_batch['inputs'], number, row)))
                shown.sort(key=lambda each: -each[0])
                del shown[self.num_nearest :]

    def _draw(self, runner) -> None:
        from clusterplug.visualization import save_embedding_map, save_image_grid

        folder = Path(runner.log_dir) / 'embeddings' if self.out_dir is None else self.out_dir
        before = self._when(runner)
        x, labels, best = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))[: self.max_samples]
        names = self.class_names
        if names is None:
            known = getattr(runner.val_dataloader.dataset, 'metainfo', {}).get('classes')
            names = known if known is not None and len(known) > int(labels.max()) else None
        save_embedding_map(
            folder / f'{before}embeddings.png', x[rows].numpy(),
            labels[rows].numpy() if bool((labels >= 0).any()) else None,
            best[rows].numpy() if bool((best >= 0).any()) else None,
            names if bool((labels >= 0).any()) else None, self.method, self.seed,
        )  # fmt: skip
        if self._nearest:
            counts = torch.bincount(best[best >= 0])
            largest = [n for n in counts.argsort(descending=True, stable=True).tolist() if n in self._nearest]
            largest = largest[: self.num_prototypes]
            size = max(each.shape[1:] for n in largest for _, each in self._nearest[n])
            save_image_grid(
                folder / f'{before}prototypes.png', [self._row(n, size) for n in largest],
                [f'{n}: {counts[n]}' for n in largest],
            )  # fmt: skip

    def _when(self, runner) -> str:
        """What stands before the names of files; outside of a training the Runner would build one to say its epoch."""
        if not self._training:
            return ''
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        return f'epoch_{runner.epoch}_' if by_epoch else f'iter_{runner.iter}_'

    def _row(self, prototype: int, size: tuple[int, int]) -> list[np.ndarray]:
        """The pictures of a prototype, filled up with white ones."""
        shown = [each for _, each in self._nearest[prototype]]
        return shown + [np.ones((3, *size))] * (self.num_nearest - len(shown))


def picture_of(inputs: dict, number: int, row: int) -> np.ndarray:
    """(3, H, W) in -1 .. 1 of one sample of a batch before the preprocessor; of a scan around the point of a row."""
    view = inputs['views'][0][number]
    view = view.detach().cpu()
    if view.dim() == 2:  # points
        from clusterplug.visualization.object_crops import object_above

        matches = inputs.get('matches')
        point = row if matches is None else int(matches[number][row, 0])
        around = (view[:, :3] - view[point, :3]).norm(dim=1) <= _SHOWN  # a single point would not be seen
        picture = object_above(view.numpy(), around.nonzero()[:, 0].numpy(), size=120, margin=5.0)
        return np.moveaxis(picture.astype(np.float32), -1, 0) / 127.5 - 1
    image = (view[len(view) // 2] if view.dim() == 4 else view).float()
    low, high = (image.min(), image.max()) if bool((image < 0).any()) else (torch.tensor(0.0), torch.tensor(255.0))
    return (2 * (image - low) / (high - low).clamp(min=1e-6) - 1).numpy()
