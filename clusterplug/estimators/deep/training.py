# SPDX-License-Identifier: Apache-2.0
"""The one training loop of the deep estimators: phases, a progress bar, stop rules without labels, exact resume."""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Phase', 'TrainingState', 'train']


@dataclasses.dataclass
class Phase:
    """One stretch of training with one loss.

    Args:
        name: Shown by the progress bar and kept in the history.
        epochs: At most as many.
        loss: ``(rows, generator) -> {name: 0-dim tensor}``, the terms of the loss of the batch of samples ``rows``
            (int64); their sum is minimized. The generator is on the CPU and seeded by seed, phase, epoch and batch.
        lr: Learning rate of Adam.
        start: Called once before the first epoch, for instance to place centers; not again after a resume.
        refresh: ``() -> change or None``, called before an epoch: targets of all samples; returns the share of
            samples whose label changed, in 0 .. 1.
        refresh_every: Epochs from one refresh to the next.
        tol: The phase ends when a refresh, from the second one on, changes a share of labels below ``tol``.
        patience: The phase ends after so many epochs without a new lowest loss; None = never.
        batch_size: Samples of a batch; None = all in one.
        even: Batches of equal size, at most ``batch_size``, instead of a rest at the end: for a loss of whole batches.
            None of a single sample: rather a larger one.
        step_done: ``(rows) -> None``, called after each optimizer step.
        parameters: ``() -> parameters`` that are trained; None = all of the network.
        weight_decay: Of Adam.
        settled: ``(losses of the epochs of the phase so far) -> bool``: whether the phase ends.
    """

    name: str
    epochs: int
    loss: Callable[[Tensor, torch.Generator], dict[str, Tensor]]
    lr: float = 1e-3
    start: Callable[[], None] | None = None
    refresh: Callable[[], float | None] | None = None
    refresh_every: int = 1
    tol: float = 0.0
    patience: int | None = None
    batch_size: int | None = None
    even: bool = False
    step_done: Callable[[Tensor], None] | None = None
    parameters: Callable[[], list[nn.Parameter]] | None = None
    weight_decay: float = 0.0
    settled: Callable[[list[float]], bool] | None = None


@dataclasses.dataclass
class TrainingState:
    """Where a fit is: everything that a later call needs to go on with the same numbers.

    Attributes:
        phase: Number of the phase; the number of phases when all are done.
        epoch: Epoch of the phase. batch: Batches of that epoch that are done. refreshed: Whether its refresh is.
        started: Whether the phase has started. sums: Losses of the epoch so far.
        best: Lowest loss of an epoch. waited: Epochs since then.
        optimizer: State of Adam, or None before a phase. tensors: Targets, labels, whatever the phases keep.
        history: One dict for each epoch: phase, epoch, loss, its terms, and label_change where labels were refreshed.
        changed: Last share of labels that changed.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    refreshed: bool = False
    started: bool = False
    sums: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: float = math.inf
    waited: int = 0
    changed: float | None = None
    optimizer: dict | None = None
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def next_phase(self) -> None:
        """Move to the start of the next phase."""
        self.phase += 1
        self.epoch = self.batch = self.waited = 0
        self.refreshed = self.started = False
        self.sums, self.best, self.changed, self.optimizer = {}, math.inf, None, None


def train(
    network: nn.Module,
    phases: list[Phase],
    state: TrainingState,
    num_samples: int,
    *,
    seed: int,
    verbose: int = 0,
    epoch_done: Callable[[], None] | None = None,
) -> bool:
    """Run the phases from where ``state`` is; return whether all of them were completed.

    Ctrl-C ends the loop after the step that is running, with ``state`` such that another call goes on from there
    with the numbers of a fit that was never stopped; a second Ctrl-C is Python's own. A loss that is not finite
    raises: on the CPU before the optimizer sees it, elsewhere at the end of the epoch.

    Args:
        network: What is trained, by Adam.
        phases: In their order.
        state: Changed in place.
        num_samples: N; batches are drawn from it without replacement, and none is dropped.
        seed: Each batch and its generator follow from seed, phase, epoch and batch number. No global generator is
            touched.
        verbose: 1 shows a progress bar with the loss and the change of labels.
        epoch_done: Called after each epoch, for instance to write a checkpoint.

    Raises:
        FloatingPointError: A loss is NaN or infinite.
    """
    with _stop_flag() as stop, _bar(phases, state, verbose) as bar:
        try:
            while state.phase < len(phases):
                if not _run_phase(network, phases[state.phase], state, num_samples, seed, bar, epoch_done, stop):
                    return False
                state.next_phase()
                bar.phase_done(state)
        except KeyboardInterrupt:  # where no handler could be set, or the second time
            return False
    return True


def _run_phase(network, phase: Phase, state: TrainingState, num_samples, seed, bar, epoch_done, stop) -> bool:
    """Return whether the phase came to its end."""
    if not state.started:
        if phase.start is not None:
            phase.start()
        state.started = True
    parameters = list(network.parameters()) if phase.parameters is None else list(phase.parameters())
    optimizer = torch.optim.Adam(parameters, lr=phase.lr, weight_decay=phase.weight_decay)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
    network.train()
    try:
        while state.epoch < phase.epochs:
            if phase.refresh is not None and not state.refreshed and state.epoch % phase.refresh_every == 0:
                network.eval()
                state.changed = phase.refresh()
                network.train()
                if state.changed is not None and state.epoch > 0 and state.changed < phase.tol:
                    break
            state.refreshed = True
            if not _run_epoch(phase, state, optimizer, parameters, num_samples, seed, stop):
                return False
            if _epoch_is_last(phase, state, num_samples, bar):
                break
            state.optimizer = optimizer.state_dict()
            if epoch_done is not None:
                epoch_done()
    finally:
        state.optimizer = optimizer.state_dict()
        network.eval()
    return True


def _run_epoch(phase, state, optimizer, parameters, num_samples, seed, stop) -> bool:
    size = num_samples if phase.batch_size is None else min(phase.batch_size, num_samples)
    generator = torch.Generator('cpu')
    generator.manual_seed(_mix(seed, state.phase, state.epoch))
    batches: Sequence[Tensor]
    order = torch.randperm(num_samples, generator=generator, device='cpu')
    if phase.even:
        batches = order.tensor_split(max(1, min(math.ceil(num_samples / size), num_samples // 2)))
    else:
        batches = order.split(size) if size < num_samples else [torch.arange(num_samples, device='cpu')]
    while state.batch < len(batches):
        if stop.is_set():
            return False
        rows = batches[state.batch]
        generator.manual_seed(_mix(seed, state.phase, state.epoch, state.batch + 1))
        terms = phase.loss(rows, generator)
        total = sum(terms.values())
        if total.device.type == 'cpu':  # elsewhere looking would wait for the device in every step
            _check_finite({name: float(term.detach()) for name, term in terms.items()}, phase, state)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        for name, term in terms.items():
            state.sums[name] = state.sums.get(name, 0.0) + term.detach() * len(rows)
        state.batch += 1
        if phase.step_done is not None:
            phase.step_done(rows)
    return True


def _check_finite(terms: dict[str, float], phase: Phase, state: TrainingState) -> None:
    if not all(math.isfinite(value) for value in terms.values()):
        raise FloatingPointError(
            f'the loss of phase {phase.name!r}, epoch {state.epoch + 1}, is not finite: {terms}; use a smaller '
            f'learning rate or scale X'
        )


def _epoch_is_last(phase: Phase, state: TrainingState, num_samples: int, bar) -> bool:
    """Book the epoch; return whether the loss has not fallen for too long."""
    terms = {name: float(value) / num_samples for name, value in state.sums.items()}
    _check_finite(terms, phase, state)
    loss = sum(terms.values())
    entry: dict[str, Any] = {'phase': phase.name, 'epoch': state.epoch + 1, 'loss': loss, **terms}
    if state.changed is not None:
        entry['label_change'] = state.changed
    state.history.append(entry)
    bar.show(entry)
    state.waited = 0 if loss < state.best else state.waited + 1
    state.best = min(state.best, loss)
    state.epoch, state.batch, state.sums, state.refreshed = state.epoch + 1, 0, {}, False
    if phase.settled is not None:
        losses = [each['loss'] for each in state.history[-state.epoch :] if each['phase'] == phase.name]
        if phase.settled(losses):
            return True
    return phase.patience is not None and state.waited >= phase.patience


def _mix(*numbers: int) -> int:
    """One seed of several numbers (the finalizer of splitmix64 over each)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        value ^= value >> 31
    return value >> 1  # torch takes seeds as signed integers


@contextlib.contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; nothing is changed where somebody else handles the signal."""
    stop = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop
        return

    def first(_number, _frame):
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Silent:
    def show(self, entry: dict) -> None:
        pass

    def phase_done(self, state: TrainingState) -> None:
        pass


class _Lines(_Silent):
    """A line an epoch, where tqdm is not installed."""

    def show(self, entry: dict) -> None:
        print(_text(entry), file=sys.stderr, flush=True)


class _Tqdm:
    def __init__(self, bar: Any, ends: list[int]):
        self.bar, self.ends = bar, ends

    def show(self, entry: dict) -> None:
        self.bar.set_description(entry['phase'], refresh=False)
        values = {'loss': f'{entry["loss"]:.4g}'}
        if 'label_change' in entry:
            values['label change'] = f'{100 * entry["label_change"]:.2f}%'
        self.bar.set_postfix(values, refresh=False)
        self.bar.update(1)

    def phase_done(self, state: TrainingState) -> None:
        # A phase that stopped early counts as done.
        self.bar.update(self.ends[state.phase - 1] - self.bar.n)


@contextlib.contextmanager
def _bar(phases: list[Phase], state: TrainingState, verbose: int) -> Iterator[Any]:
    if not verbose:
        yield _Silent()
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Lines()
        return
    ends = [sum(phase.epochs for phase in phases[: number + 1]) for number in range(len(phases))]
    done = (ends[state.phase - 1] if state.phase > 0 else 0) + state.epoch
    with tqdm(total=ends[-1] if ends else 0, initial=done, unit='epoch', leave=True) as bar:
        yield _Tqdm(bar, ends)


def _text(entry: dict) -> str:
    change = f', label change {100 * entry["label_change"]:.2f}%' if 'label_change' in entry else ''
    return f'{entry["phase"]} epoch {entry["epoch"]}: loss {entry["loss"]:.4g}{change}'
