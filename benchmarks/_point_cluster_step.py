# SPDX-License-Identifier: Apache-2.0
"""Share of the point cluster loss in a training step of a config's segmentor, the demo's MinkUNet18 by default."""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _point_cluster_measure import launches, machine, summary, verdict

from clusterplug.testing import peak_bytes


def models_of(config: str) -> tuple[dict, dict]:
    """Model dicts of a config without and with its clustering loss."""
    from mmengine.config import Config

    model = Config.fromfile(config).model
    return model.model, model


def scans(folder: Path) -> Path:
    """Two scans in SemanticKITTI layout: LiDAR city, or the tiny street with as many points where Open3D is missing."""
    try:
        from clusterplug.datasets.lidar_city import generate_lidar_city

        return generate_lidar_city(folder, num_train=2, num_val=1, columns=1024, progress=False)
    except ImportError:
        from clusterplug.testing import write_tiny_semantickitti

        return write_tiny_semantickitti(folder, num_scans=2, num_points=60_000)


class Trainer:
    """One model with its optimizer on one fixed batch."""

    def __init__(self, data_root: Path, folder: Path, model: dict, device: str):
        from mmengine.optim import OptimWrapper

        from clusterplug.testing import build_tiny_runner

        runner = build_tiny_runner(folder, data_root, wrap=lambda _: copy.deepcopy(model))
        self.model = runner.model.to(device).train()
        self.batch = next(iter(runner.train_dataloader))
        self.optimizer = OptimWrapper(torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9))
        self.device = device

    def step(self) -> None:
        self.model.train_step(self.batch, self.optimizer)

    def timed_step(self) -> tuple[float, float]:
        """Process time (CUDA: time on the wall until the device is done) and time on the wall, in ms."""
        self._wait()
        clock, wall = time.process_time(), time.perf_counter()
        self.step()
        self._wait()
        return 1e3 * (time.process_time() - clock), 1e3 * (time.perf_counter() - wall)

    def _wait(self):
        if self.device == 'cuda':
            torch.cuda.synchronize()


def captured_inputs(trainer: Trainer) -> tuple:
    """What the loss gets in a step of this trainer, and the loss."""
    loss, kept = trainer.model.clustering.loss, []
    handle = loss.register_forward_pre_hook(lambda _, inputs: kept.append(inputs))
    trainer.step()
    handle.remove()
    features, labels, predictions, *others = kept[0]
    return loss, (features.detach().requires_grad_(), labels, predictions.detach(), *others)


def loss_alone(loss, inputs):
    """Forward and backward of the loss on what it got in a step."""

    def call():
        inputs[0].grad = None
        sum(loss(*inputs).values()).backward()

    return call


def measure_step(options: argparse.Namespace) -> None:
    device = options.device
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_root = scans(folder / 'city')
        bare, clustered = models_of(options.config)
        plain = Trainer(data_root, folder / 'plain', bare, device)
        with_loss = Trainer(data_root, folder / 'loss', clustered, device)
        loss, inputs = captured_inputs(with_loss)
        alone = loss_alone(loss, inputs)
        for _ in range(2):
            plain.step(), with_loss.step(), alone()
        times = {'plain': [], 'with the loss': [], 'loss alone': []}
        walls = {'plain': [], 'with the loss': []}
        for _ in range(options.steps):
            for name, trainer in (('plain', plain), ('with the loss', with_loss)):
                process, wall = trainer.timed_step()
                times[name].append(wall if device == 'cuda' else process)
                walls[name].append(wall)
            times['loss alone'].append(_alone_ms(alone, device))
        memory = {name: peak_bytes(trainer.step, device) for name, trainer in
                  (('plain', plain), ('with the loss', with_loss))}  # fmt: skip
        counts = {name: launches(trainer.step, device) for name, trainer in
                  (('plain', plain), ('with the loss', with_loss))}  # fmt: skip
        report(times, walls, memory, counts, inputs[0].shape, dict(clustered.loss), options)


def _alone_ms(call, device: str) -> float:
    clock = time.perf_counter if device == 'cuda' else time.process_time
    start = clock()
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)


def report(times: dict, walls: dict, memory: dict, counts: dict, shape, loss: dict, options) -> None:
    plain, both = times['plain'], times['with the loss']
    added = statistics.median(b - a for a, b in zip(plain, both, strict=True)) / statistics.median(both)
    alone = statistics.median(times['loss alone']) / statistics.median(both)
    more = memory['with the loss'] / memory['plain'] - 1
    print('| step | ms, process time (IQR) | ms on the wall (IQR) | peak MB | launches |\n|---|---|---|---|---|')
    for name in ('plain', 'with the loss'):
        print(f'| {name} | {summary(times[name])} | {summary(walls[name])} | {memory[name] / 1e6:.1f} | '
              f'{counts[name]} |')  # fmt: skip
    print(f'| loss alone, forward + backward | {summary(times["loss alone"])} | | | |')
    print(f'\n{machine(options.device)}; {options.threads} threads; {Path(options.config).stem}, '
          f'two scans, {shape[0]} voxels, {shape[1]} features; {loss}; median of {options.steps} '
          'interleaved pairs.')  # fmt: skip
    print(f'\n- share of the step, loss alone: {100 * alone:.1f} %, at most 3 %: {verdict(alone <= 0.03)}')
    print(f'- share of the step, median of the paired differences: {100 * added:.1f} %, at most 3 %: '
          f'{verdict(added <= 0.03)}')  # fmt: skip
    print(f'- more memory: {100 * more:.1f} %, at most 2 %: {verdict(more <= 0.02)}')
