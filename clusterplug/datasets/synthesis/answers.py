# SPDX-License-Identifier: Apache-2.0
"""Validation of what generators answer: JSON in text, values that overlap, numbers that are missing."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import re
from collections.abc import Mapping

import numpy as np

from clusterplug.datasets.synthesis.protocol import InvalidAnswer

__all__ = ['find_json', 'value_key']

COMPLETE, INFINITE = 'complete', 'infinite'
_LONGEST = 200  # characters of a criterion or value: more is a text, not a value
_LARGEST = 1e300  # NaN is not less than it either
_STARTS = 200  # places of a text at which JSON is looked for
_RANGE = re.compile(r'\s*(-?\d+(?:\.\d+)?)\s*(?:-|–|to)\s*(-?\d+(?:\.\d+)?)\s*(\D*)')  # noqa: RUF001


def value_key(value) -> str:
    """The form in which values are compared: without case, spaces around and the type of a number.

    Example:
        >>> value_key('  Light  Rain'), value_key(2.0), value_key('2'), value_key(True)
        ('light rain', '2', '2', 'true')
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return ' '.join(str(value).casefold().split())


def find_json(text: str, kind: type | tuple[type, ...] = (dict, list)):
    """Return the first JSON value of a kind in a text, also in a fence or between sentences.

    Args:
        text: An answer of a language model.
        kind: dict, list or both.

    Raises:
        InvalidAnswer: There is none, or a key occurs twice in it.

    Example:
        >>> find_json('Sure! ```json\\n{"dimension": "size", "attributes": {"small": [1]}}``` Enjoy.')['dimension']
        'size'
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles)
    for start in [found.start() for found in re.finditer(r'[{\[]', text)][:_STARTS]:
        try:
            value, _ = decoder.raw_decode(text, start)
        except InvalidAnswer:
            raise
        except (ValueError, RecursionError):  # a number of thousands of digits is no JSONDecodeError
            continue
        if isinstance(value, kind):
            return value
    raise InvalidAnswer(f'no JSON in the answer {text!r:.120}')


def _without_doubles(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidAnswer(f'a key occurs twice in {pairs!r:.120}')
    return found


def check_criterion(answer, count: int, used: list[str]) -> dict:
    """Return ``{'dimension': name, 'values': [...]}`` of a valid answer.

    Raises:
        InvalidAnswer: Not the form of ``Generator.criterion``, a dimension of the path, or samples with no value, or
            with two.
    """
    if isinstance(answer, str):
        answer = find_json(answer, dict)
    if not isinstance(answer, Mapping) or not {'dimension', 'attributes'} <= set(answer):
        raise InvalidAnswer(f'a criterion must have dimension and attributes, got {answer!r:.120}')
    dimension, attributes = answer['dimension'], answer['attributes']
    if not isinstance(dimension, str):
        raise InvalidAnswer(f'the dimension must be text, got {dimension!r:.120}')
    dimension = _value(dimension)
    if value_key(dimension) in {value_key(each) for each in used}:
        raise InvalidAnswer(f'the dimension {dimension!r} is on the path already')
    pairs = list(attributes.items()) if isinstance(attributes, Mapping) else attributes
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise InvalidAnswer(f'attributes must give a list of numbers for each value, got {attributes!r:.120}')
    values, seen = [], []
    for value, indices in pairs:
        if not isinstance(indices, list | tuple):
            raise InvalidAnswer(f'the value {value!r:.40} must have a list of numbers, got {indices!r:.80}')
        values.append(_value(value))
        seen += indices
    if any(isinstance(i, bool) or not isinstance(i, numbers.Integral) for i in seen):
        raise InvalidAnswer(f'numbers of samples must be integers, got {seen!r:.120}')
    if sorted(seen) != list(range(1, count + 1)):
        twice = sorted({i for i in seen if seen.count(i) > 1})
        raise InvalidAnswer(
            f'each of the samples 1 to {count} must have one value; twice: {twice}, missing: '
            f'{sorted(set(range(1, count + 1)) - set(seen))}'
        )
    if distinct(values) != values:
        raise InvalidAnswer(f'values must differ, got {values!r:.120}')
    check_overlap(values)
    return {'dimension': dimension, 'values': values}


def check_coverage(answer, values: list) -> dict:
    """Return ``{'values': new ones, 'end': 'complete' or 'infinite'}`` of a valid answer.

    Raises:
        InvalidAnswer: No terminator, or ``infinite`` without a single new value, which would go on for ever.
    """
    if isinstance(answer, str):
        word = answer.strip().strip('`"\'.').casefold()
        answer = None if word == 'null' else [word] if word in (COMPLETE, INFINITE) else find_json(answer, list)
    if answer is None:
        return {'values': [], 'end': COMPLETE}
    if isinstance(answer, list | tuple) and len(answer) == 2 and isinstance(answer[0], list | tuple):
        answer = [*answer[0], answer[1]]  # (values, terminator)
    if not isinstance(answer, list | tuple) or not answer or value_key(answer[-1]) not in (COMPLETE, INFINITE):
        raise InvalidAnswer(f"a list of values must end with 'complete' or 'infinite', got {answer!r:.120}")
    known = {value_key(each) for each in values}
    new = [each for each in distinct([_value(each) for each in answer[:-1]]) if value_key(each) not in known]
    end = value_key(answer[-1])
    if end == INFINITE and not new:
        raise InvalidAnswer(f"'infinite' needs values that are not in the list yet, got {answer!r:.120}")
    if end == COMPLETE:
        check_overlap([*values, *new])
    return {'values': new, 'end': end}


def check_samples(answer, most: int, least: int = 1) -> list:
    """Return at most ``most`` samples.

    Raises:
        InvalidAnswer: Not a list, or fewer than ``least``.
    """
    if isinstance(answer, str):
        answer = find_json(answer, list)
    if isinstance(answer, np.ndarray):
        answer = list(answer)
    if not isinstance(answer, list | tuple):
        raise InvalidAnswer(f'samples must be a list, got {type(answer).__name__}')
    if len(answer) < least:
        raise InvalidAnswer(f'{least} samples are needed, got {len(answer)}')
    return list(answer[:most])


def check_overlap(values: list) -> None:
    """Raise InvalidAnswer where two values are ranges of numbers of one unit that overlap (``'0-10 m', '5-20 m'``)."""
    ranges = [_RANGE.fullmatch(value) if isinstance(value, str) else None for value in values]
    found = sorted((float(r[1]), float(r[2]), value_key(r[3]), v) for r, v in zip(ranges, values) if r)
    for unit in {each[2] for each in found}:
        reached, before = -math.inf, None
        for low, high, other, value in found:
            if other != unit or high < low:
                continue
            if low < reached:
                raise InvalidAnswer(f'the values {before!r} and {value!r} overlap')
            reached, before = max(reached, high), value


def distinct(values: list) -> list:
    """The first of all values of one key."""
    found = {}
    for value in values:
        found.setdefault(value_key(value), value)
    return list(found.values())


def _value(value):
    if isinstance(value, np.generic):
        value = value.item()
    is_number = isinstance(value, int | float) and abs(value) < _LARGEST
    if not is_number and not (isinstance(value, str) and 0 < len(value.strip()) <= _LONGEST):
        raise InvalidAnswer(f'a value must be a short text or a number, got {value!r:.120}')
    return value.strip() if isinstance(value, str) else value


def digest(*parts) -> str:
    """16 hexadecimal digits of plain values."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
