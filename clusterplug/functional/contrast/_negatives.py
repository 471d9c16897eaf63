# SPDX-License-Identifier: Apache-2.0
"""Sums over negatives that neither overflow nor vanish, and how many anchors fit in one pass."""

from functools import lru_cache

import torch
from torch import Tensor

from clusterplug.functional.contrast.subclass_contrast import NEVER

# From this temperature on the logits of unit rows lie from -25 to 25, so that their exponentials and sums of those are
# within fp32; what stands for "not a key" lies far below them, yet above -87: some CPU libraries take 60 times as long
# for an exponential that underflows. Below it the largest logit of each row is taken off, in three passes more.
_PLAIN = 0.04
_ABSENT = -86.0
# Logits held at once. On the CPU they stay in its last cache; on other devices a launch costs more than memory traffic.
_PASS_BYTES = {'cpu': 32 * 2**20}
_MOST_PASS_BYTES = 256 * 2**20


def absent_logit(temperature: float) -> float:
    """Stands for "not a key" among logits of unit rows."""
    return _ABSENT if temperature >= _PLAIN else NEVER


def exponentials_(logits: Tensor, temperature: float, kept: Tensor, some: bool = False) -> tuple[Tensor, Tensor]:
    """Turn logits into exponentials up to a factor of each row, in place, 0 where they do not count.

    Args:
        logits: (A, M).
        temperature: by which they were divided.
        kept: (A, M) 1 or 0 in the type of the logits: which of them count. Is overwritten.
        some: some count in every row, if but :func:`absent_logit`.

    Returns:
        (A, 1) their sums, above 0, and (A, 1) the logarithm of the sum of the exponentials proper. In a row where
        nothing counts but :func:`absent_logit` that lies so far down that no positive sees it.
    """
    if temperature >= _PLAIN:
        total = logits.exp_().mul_(kept).sum(1, keepdim=True)
        if not some:
            total.clamp_(min=torch.finfo(logits.dtype).tiny)
        return total, total.log()
    logits.add_(kept.sub_(1), alpha=-NEVER)
    top = logits.amax(1, keepdim=True)
    total = logits.sub_(top).clamp_(min=_ABSENT).exp_().sum(1, keepdim=True)
    return total, total.log().add_(top)


def different(ids: Tensor, key_ids: Tensor, like: Tensor) -> Tensor:
    """1 where the ids (A,) and (M,) differ, else 0, (A, M) in the type of ``like``, in which the ids come.

    Exact in fp32 up to 2^24 ids. Comparisons that write numbers are far faster on CPUs than those that write bools.
    """
    return torch.ne(ids[:, None], key_ids, out=torch.empty_like(like))


@lru_cache(maxsize=64)
def ring_numbers(length: int, times: int, by_slot: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0, 0, ... 1, 1, ..., or 0, 1, ... 0, 1, ... where slots come first; must not be written to."""
    with torch.inference_mode(False):
        numbers = torch.arange(length, dtype=dtype, device=device)
        return numbers.repeat(times) if by_slot else numbers.repeat_interleave(times)


def rows_in_a_pass(num_keys: int, like: Tensor) -> int:
    """Number of anchors of which the logits with ``num_keys`` keys fit in one pass, at least 1."""
    most = _PASS_BYTES.get(like.device.type, _MOST_PASS_BYTES)
    return max(1, most // max(1, num_keys * like.element_size()))


def joined(parts: list) -> tuple:
    """Results of several passes as those of one."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
