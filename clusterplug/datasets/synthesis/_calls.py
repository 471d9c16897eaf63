# SPDX-License-Identifier: Apache-2.0
"""Asking a generator: seeds of the question, retries, validation, budget and costs; and the queue of the work."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clusterplug.core.outputs import locked_folder
from clusterplug.datasets.synthesis._journal import Journal
from clusterplug.datasets.synthesis.answers import digest
from clusterplug.datasets.synthesis.protocol import BudgetExceeded, GeneratorUnavailable, InvalidAnswer, identity_of

_UNAVAILABLE = (GeneratorUnavailable, ConnectionError, TimeoutError, urllib.error.URLError)
_LONGEST_PAUSE = 60.0


class Cost(NamedTuple):
    """What a tree has cost so far, earlier runs of its folder counted.

    Attributes:
        calls: Questions to the generator, also those without a usable answer.
        invalid: Answers that were refused.
        unavailable: Calls without an answer (time-outs, errors of a server).
        seconds: Spent waiting for answers, summed over workers.
        tokens: (of the prompts, of the answers), where the generator counts them.
        steps: Calls by step: pivots, criterion, complete, samples, route.
        reasons: The last reasons of refused answers, at most 5.
    """

    calls: int
    invalid: int
    unavailable: int
    seconds: float
    tokens: tuple[int, int]
    steps: dict[str, int]
    reasons: list[str]


def total_cost(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    total = Cost(0, 0, 0, 0.0, (0, 0), {}, [])
    for each in costs:
        steps = {name: total.steps.get(name, 0) + each.steps.get(name, 0) for name in {**total.steps, **each.steps}}
        tokens = (total.tokens[0] + each.tokens[0], total.tokens[1] + each.tokens[1])
        total = Cost(*(a + b for a, b in zip(total[:4], each[:4])), tokens, steps, [*total.reasons, *each.reasons][-5:])
    return total


class Calls:
    """The one way to a generator.

    Args:
        journal: Answers that are there already.
        identity: Of the generator: answers of another one are not taken for its own.
        seed: Of the tree. The random numbers of a question follow from it and from the question alone.
        attempts: Answers to one question that may be refused before it is given up.
        retries: Times that a question without answer is asked again, after pauses that double.
        pause: First pause, seconds.
        budget: Calls allowed in total, earlier runs counted; None for any number.
    """

    def __init__(
        self, journal: Journal, identity: str, seed: int, attempts: int, retries: int, pause: float,
        budget: int | None = None,
    ):  # fmt: skip
        self.journal, self.identity, self._seed, self.attempts = journal, identity, seed, attempts
        self._retries, self._pause, self._budget = retries, pause, budget
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._spent = sum(entry.get('calls', 1) for entry in journal.entries())

    def rng(self, *parts) -> np.random.Generator:
        """Random numbers that depend on the seed and on ``parts``."""
        return np.random.default_rng(int(digest(self._seed, *parts), 16))

    def ask(self, step: str, key: list, call: Callable, check: Callable, count: int = 1):
        """Return the first valid answer, None after ``attempts`` refused ones.

        Args:
            step: Name of the step, for the cost.
            key: Plain values that no other question has.
            call: ``call(rng)`` asks the generator.
            check: Returns the answer in its plain form or raises InvalidAnswer.
            count: Calls that ``call`` makes.

        Raises:
            BudgetExceeded: The budget does not allow it.
            GeneratorUnavailable: No answer came, retries included.
        """
        for attempt in range(self.attempts):
            name = f'{step}/{digest(self.identity, *key)}/{attempt}'
            entry = self.journal.get(name)
            if entry is None:
                entry = self._ask(step, name, lambda a=attempt: call(self.rng(step, *key, a)), check, count)
            if 'answer' in entry:
                return entry['answer']
        return None

    def _ask(self, step: str, name: str, call: Callable, check: Callable, count: int) -> dict:
        begun, tokens = time.monotonic(), _Tokens()
        for tried in range(self._retries + 1):
            if self._stopped.is_set():
                raise BudgetExceeded('stopped')
            self._spend(count)
            try:
                with tokens:
                    answer = {'answer': check(call())}
            except (InvalidAnswer, json.JSONDecodeError) as error:
                answer = {'invalid': str(error)}
            except _UNAVAILABLE as error:
                again = getattr(error, 'again', True) and tried < self._retries
                self.journal.add(f'{name}!{time.time_ns()}.{tried}', step=step, unavailable=str(error), calls=count)
                if not again:
                    raise GeneratorUnavailable(
                        f'the generator does not answer ({type(error).__name__}: {error}); all answers so far are '
                        'kept, run the same again to go on',
                        again=False,
                    ) from error
                self._stopped.wait(min(self._pause * 2**tried, _LONGEST_PAUSE))
                continue
            seconds = round(time.monotonic() - begun, 4)
            return self.journal.add(name, step=step, calls=count, seconds=seconds, **tokens.entry(), **answer)
        raise AssertionError('unreachable')

    def _spend(self, count: int) -> None:
        with self._lock:
            if self._budget is not None and self._spent + count > self._budget:
                raise BudgetExceeded(f'the budget of {self._budget} calls is used up')
            self._spent += count

    def stop(self) -> None:
        """Let no further call begin."""
        self._stopped.set()

    def cost(self) -> Cost:
        """What all answers of the journal have cost."""
        entries, steps = self.journal.entries(), {}
        for entry in entries:
            steps[entry['step']] = steps.get(entry['step'], 0) + entry.get('calls', 1)
        tokens = np.array([entry.get('tokens', (0, 0)) for entry in entries] or [(0, 0)]).sum(0)
        return Cost(
            sum(steps.values()),
            sum('invalid' in entry for entry in entries),
            sum('unavailable' in entry for entry in entries),
            round(sum(entry.get('seconds', 0.0) for entry in entries), 3),
            (int(tokens[0]), int(tokens[1])),
            steps,
            [entry['invalid'] for entry in entries if 'invalid' in entry][-5:],
        )


_COUNTERS = threading.local()


def count_tokens(prompt: int, answer: int) -> None:
    """Called by a generator: tokens of the question that this thread is asking."""
    counter = getattr(_COUNTERS, 'counter', None)
    if counter is not None:
        counter.used[0] += prompt
        counter.used[1] += answer


class _Tokens:
    def __init__(self):
        self.used = [0, 0]

    def __enter__(self):
        _COUNTERS.counter = self

    def __exit__(self, *_):
        _COUNTERS.counter = None

    def entry(self) -> dict:
        return {'tokens': self.used} if any(self.used) else {}


@contextmanager
def session(folder, settings: dict, generator, **options):
    """Yield :class:`Calls` over the journal of a folder, which is held by this process meanwhile."""
    options.update(seed=settings['seed'], identity=identity_of(generator))
    if folder is None:
        yield Calls(Journal(None, settings), **options)
        return
    folder = Path(folder)
    with locked_folder(folder):
        journal = Journal(folder, settings)
        try:
            yield Calls(journal, **options)
        finally:
            journal.close()


def run_queue(items: list, work: Callable, workers: int, calls: Calls) -> bool:
    """Do ``work(item)``, which returns further items, until nothing is left; no item waits for its neighbors.

    Returns:
        Whether all was done; False where the budget ended it.
    """
    if workers == 1:  # in this thread: generators need not be safe for several
        todo = list(items)[::-1]
        try:
            while todo:
                todo += (work(todo.pop()) or [])[::-1]
        except BudgetExceeded:
            return False
        return True
    error = None
    with ThreadPoolExecutor(workers, thread_name_prefix='synthesis') as pool:
        running = {pool.submit(work, item) for item in items}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    found = future.exception()
                    if found is None:
                        if error is None:
                            running |= {pool.submit(work, item) for item in future.result() or []}
                    elif error is None or (isinstance(error, BudgetExceeded) and not isinstance(found, BudgetExceeded)):
                        error = found
                        calls.stop()
                        for each in running:
                            each.cancel()
                        running = {each for each in running if not each.cancelled()}
        finally:
            if sys.exc_info()[0] is not None:  # Ctrl-C: calls that run come to their end, no other begins
                calls.stop()
                pool.shutdown(wait=False, cancel_futures=True)
    if error is None:
        return True
    if isinstance(error, BudgetExceeded):
        return False
    raise error
