# SPDX-License-Identifier: Apache-2.0
"""Pictures of the subclasses while a model is trained."""

import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from clusterplug.core.checks import whole_number
from clusterplug.hooks._find import clustering_losses
from clusterplug.hooks.cluster_stats import subclass_stats
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class ClusterVisualizationHook(Hook):
    """Draw subclass sizes, centers, their drift, and a scan colored by subclass, after every few epochs.

    Files go to ``<work_dir>/<timestamp>/subclasses/``: ``epoch_3_subclass_sizes.png``, ``epoch_3_centers.png`` (their
    principal plane), ``drift.png`` (of the centers from one writing to the next, and the share of them that is used)
    and, for segmentors, ``epoch_3_scan_0.png`` and ``.html``. Nothing is shown on a display. Only the first rank draws,
    and the training goes on as without it: its random numbers are put back, and a picture that fails is a warning.

    Args:
        interval: Epochs between two writings. Defaults to 1.
        stats_interval: Training steps between two points of the drift curve. Defaults to 50.
        scans: Scans of the validation set to draw, the first so many. Defaults to 1, and to 0 for
            detectors, which have no class of a point, and where there is no validation set.
        class_names (Sequence[str], optional): By default those of the data set.

    Raises:
        ValueError: A bad number, or, before the training, no clustering loss in the model, or ``scans`` for a
            detector or without a validation set.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ClusterVisualizationHook')]``
    """

    # after the others have changed what is drawn
    priority = 'LOW'

    def __init__(self, interval: int = 1, stats_interval: int = 50, scans: int | None = None, class_names=None):
        for name, value, low in (('interval', interval, 1), ('stats_interval', stats_interval, 1), ('scans', scans, 0)):
            if name != 'scans' or value is not None:
                whole_number(name, value, least=low)
        self.interval, self.stats_interval, self.scans = interval, stats_interval, scans
        self.class_names = class_names
        self._previous = {}
        self._curves = {}

    def before_train(self, runner) -> None:
        """Look for the losses, and for a reason why no scan can be drawn, at once and not after the first interval."""
        clustering_losses(runner.model, type(self).__name__)
        if self.scans == 0:
            return
        reason = self._why_no_scan(runner)
        if reason and self.scans is not None:
            raise ValueError(f'{type(self).__name__} cannot draw {self.scans} scans: {reason}; set scans=0')
        if reason:
            runner.logger.info(f'{type(self).__name__} draws no scan: {reason}')
        self.scans = 0 if reason else 1 if self.scans is None else self.scans

    @staticmethod
    def _why_no_scan(runner) -> str:
        from clusterplug.attach import check_predictable

        if runner.val_loop is None:
            return 'the config has no val_dataloader'
        try:
            check_predictable(_unwrapped(runner.model))
        except ValueError as error:
            return str(error)
        return ''

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Add a point to the curves."""
        if not is_main_process() or not self.every_n_train_iters(runner, self.stats_interval):
            return
        for name, loss in clustering_losses(runner.model, type(self).__name__).items():
            for key, value in subclass_stats(loss.memory, self._previous.get(name)).items():
                if key in ('drift', 'used'):
                    steps, values = self._curves.setdefault(f'{name}{key}', ([], []))
                    steps.append(runner.iter + 1)
                    values.append(value)
            self._previous[name] = loss.memory.centers.clone()

    def after_train_epoch(self, runner) -> None:
        """Draw."""
        if not self.every_n_epochs(runner, self.interval) or not is_main_process():
            return
        try:
            with _random_numbers_kept():
                self._draw(runner)
        except Exception as error:  # a full disk, a broken scan: the training is worth more than its pictures
            runner.logger.warning(
                f'{type(self).__name__} could not draw after epoch {runner.epoch + 1}, and the training goes on: '
                f'{type(error).__name__}: {error}'
            )

    def _draw(self, runner) -> None:
        from clusterplug.visualization import save_curves
        from clusterplug.visualization.subclass_views import save_memory_views

        folder = Path(runner.log_dir) / 'subclasses'
        names = self.class_names or runner.train_dataloader.dataset.metainfo.get('classes')
        for name, loss in clustering_losses(runner.model, type(self).__name__).items():
            known = names if names is not None and len(names) == loss.num_classes else None
            save_memory_views(folder, loss.memory, known, f'epoch_{runner.epoch + 1}_{name}')
        if self._curves:
            save_curves(folder / 'drift.png', self._curves)
        self._draw_scans(runner, folder, names)

    def _draw_scans(self, runner, folder: Path, names) -> None:
        from mmengine.dataset import pseudo_collate

        from clusterplug.attach import predict_subclasses, true_classes
        from clusterplug.visualization.subclass_views import save_scan_views, scan_colorings

        if not self.scans or runner.val_loop is None:
            return
        model, dataset = _unwrapped(runner.model), runner.val_loop.dataloader.dataset
        for number in range(min(self.scans, len(dataset))):
            data = pseudo_collate([dataset[number]])
            (scan,) = predict_subclasses(model, data)
            mask = true_classes(data['data_samples'][0])
            truth = None if mask is None else mask.cpu().numpy()
            colorings = scan_colorings(scan, model.clustering.loss.memory.num_clusters, truth)
            points = scan.points.cpu().numpy()
            save_scan_views(folder, f'epoch_{runner.epoch + 1}_scan_{number}', points, colorings, names or ())


def _unwrapped(model):
    from mmengine.model import is_model_wrapper

    return model.module if is_model_wrapper(model) else model


@contextmanager
def _random_numbers_kept():
    """Rooms are cut into patches at random; the training must draw the same numbers as without pictures."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
