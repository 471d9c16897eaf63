# SPDX-License-Identifier: Apache-2.0
"""A language model as a generator: what it is asked, and how its answers become plain values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from clusterplug.core.checks import check_count, check_number
from clusterplug.datasets.synthesis.answers import digest, find_json
from clusterplug.datasets.synthesis.protocol import InvalidAnswer

__all__ = ['ChatGenerator']

_SAMPLES = """{task}
{conditions}
Write {n} samples that differ from each other as much as possible. Answer with a JSON list of {n} strings only."""
_CRITERION = """{task}
Here are {n} numbered samples:
{samples}
Name exactly one dimension in which they differ most{used}, and give each sample one value of it. Every number from 1 to
{n} must occur once. Answer with JSON only: {{"dimension": "...", "attributes": {{"value": [numbers], ...}}}}"""
_COMPLETE = """{task}
Values of the dimension "{criterion}" so far:
{values}
Which values are missing, so that every possible sample has exactly one of them? Answer with JSON only:
null if the list is complete; a list of the missing values that ends with "complete" if it is complete with them;
or a list of 10 further values that ends with "infinite" if it can never be complete. No value such as "other"."""
_ROUTE = """Here are {n} numbered samples:
{samples}
Choose for each the one value of "{criterion}" that fits it, of this list:
{values}
Answer with a JSON list of {n} strings only, one for each sample in order; use null where none fits."""


class ChatGenerator:
    """Asks a chat model for pivots, criteria, values, samples and routes; samples are texts.

    Args:
        task: What a sample is, in a few sentences ("A caption of a street scene seen from a car.").
        chat: ``chat(prompt, *, temperature, max_tokens, seed) -> text``: a :class:`ChatEndpoint`, a
            :class:`TransformersChat` or a function of one's own.
        creative: Temperature of criteria.
        steady: Temperature of samples and of lists of values.
        exact: Temperature of routes.
        max_tokens: Length of an answer.
        batch_size: Samples that are routed by one question.

    Raises:
        TypeError, ValueError: ``task`` is no text, ``chat`` no function, a number out of range.

    Source:
        Wang et al., arXiv 2503.17195, section 3 and the code's temperatures (1.0, 0.7, 0.3); the prompts are our own.

    **Differs from the authors' code**: samples are asked for and routed as JSON lists, many a call (theirs takes one
    call a sample and level); a JSON value is taken out of the text by a parser, not by matching braces.

    Example:
        >>> import json
        >>> from clusterplug.datasets.synthesis import PartitionTree
        >>> def parrot(prompt, *, temperature, max_tokens, seed):
        ...     return 'Here you are: ' + json.dumps(['polly'] * 10)
        >>> PartitionTree(max_depth=0).generate(ChatGenerator('A word of a parrot.', parrot)).samples[:2]
        ['polly', 'polly']
    """

    def __init__(
        self, task: str, chat: Callable, *, creative: float = 1.0, steady: float = 0.7, exact: float = 0.3,
        max_tokens: int = 1024, batch_size: int = 10,
    ):  # fmt: skip
        if not isinstance(task, str) or not task.strip():
            raise TypeError(f'task must be a text that says what a sample is, got {task!r:.80}')
        if not callable(chat):
            raise TypeError(f'chat must be a function (prompt, *, temperature, max_tokens, seed), got {chat!r:.80}')
        self.task, self.chat = task.strip(), chat
        self.creative, self.steady, self.exact = (
            check_number(value, name, 0.0, 2.0)
            for name, value in (('creative', creative), ('steady', steady), ('exact', exact))
        )
        self.max_tokens = check_count(max_tokens, 'max_tokens', 1)
        self.batch_size = check_count(batch_size, 'batch_size', 1)
        model = getattr(chat, 'identity', None) or getattr(chat, '__qualname__', type(chat).__name__)
        self.identity = f'ChatGenerator:{digest(self.task, model, self.creative, self.steady, self.exact)}'

    def pivots(self, desc: Mapping, n: int, rng: np.random.Generator) -> list[str]:
        """See :class:`Generator`."""
        return self.samples(desc, n, rng)

    def samples(self, desc: Mapping, n: int, rng: np.random.Generator) -> list[str]:
        """See :class:`Generator`."""
        listed = '\n'.join(f'- {criterion}: {value}' for criterion, value in desc.items())
        conditions = f'Every sample must satisfy all of:\n{listed}' if desc else ''
        text = self._ask(_SAMPLES.format(task=self.task, conditions=conditions, n=n), self.steady, rng)
        found = find_json(text, list)
        if not all(isinstance(each, str) and each.strip() for each in found):
            raise InvalidAnswer(f'samples must be texts, got {found!r:.120}')
        return found

    def criterion(self, samples: list, used: list[str], rng: np.random.Generator) -> dict:
        """See :class:`Generator`."""
        avoid = f' (not one of: {", ".join(used)})' if used else ''
        prompt = _CRITERION.format(task=self.task, n=len(samples), samples=_numbered(samples), used=avoid)
        return find_json(self._ask(prompt, self.creative, rng), dict)

    def complete(self, criterion: str, values: list, rng: np.random.Generator) -> str:
        """See :class:`Generator`; the text is read by the tree."""
        listed = '\n'.join(f'- {value}' for value in values)
        return self._ask(_COMPLETE.format(task=self.task, criterion=criterion, values=listed), self.steady, rng)

    def route(self, sample, criterion: str, values: list, rng: np.random.Generator):
        """See :class:`Generator`."""
        return self.route_batch([sample], criterion, values, rng)[0]

    def route_batch(self, samples: list, criterion: str, values: list, rng: np.random.Generator) -> list:
        """See :class:`Generator`."""
        listed = '\n'.join(f'- {value}' for value in values)
        prompt = _ROUTE.format(n=len(samples), samples=_numbered(samples), criterion=criterion, values=listed)
        found = find_json(self._ask(prompt, self.exact, rng), list)
        if len(found) != len(samples):
            raise InvalidAnswer(f'{len(samples)} values are needed, got {len(found)}')
        return found

    def _ask(self, prompt: str, temperature: float, rng: np.random.Generator) -> str:
        seed = int(rng.integers(2**31))
        text = self.chat(prompt, temperature=temperature, max_tokens=self.max_tokens, seed=seed)
        if not isinstance(text, str) or not text.strip():
            raise InvalidAnswer('the reply is empty')
        return text


def _numbered(samples: list) -> str:
    texts = (each if isinstance(each, str) else json.dumps(each, default=repr) for each in samples)
    return '\n'.join(f'{number}. {text}' for number, text in enumerate(texts, start=1))
