# SPDX-License-Identifier: Apache-2.0
"""NT-Xent: two views of each sample attract, all other views of the batch repel."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_number, check_points
from clusterplug.core.numerics import exact_products
from clusterplug.functional.contrast._unit_rows import unit_rows
from clusterplug.functional.contrast.info_nce import info_nce


def nt_xent(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    r"""Return the normalized, temperature-scaled cross entropy of SimCLR between two views of N samples.

    .. math::
        L = \frac{1}{2N} \sum_{i=1}^{2N} -\log
        \frac{e^{z_i \cdot z_{i'} / \tau}}{\sum_{j \ne i} e^{z_i \cdot z_j / \tau}},

    with z the rows of a and b at unit length, and i' the other view of i.

    Args:
        a: (..., N, D) embeddings of the first views, of any length: they are normalized here.
        b: (..., N, D) embeddings of the second views; row i belongs to row i of ``a``.
        temperature: Divides the cosines.

    Returns:
        () or (...): the mean over the 2 N anchors, in the type of ``a``, computed in fp32 at least. 0 for one sample
        and for none. A sample with NaN or infinity in a view is ignored, as anchor and as negative; where all are,
        the loss is NaN. No host synchronization; one product of (2 N, D) with its transpose.

    Raises:
        TypeError: A tensor of another kind.
        ValueError: Shapes, devices or a temperature that do not fit.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv
    2002.05709, algorithm 1; as used by Chakraborty, Gosthipaty, Paul, "G-SimCLR", ICDM Workshops 2020, arXiv
    2009.12007, official code ariG23498/G-SimCLR (Apache-2.0).

    Differs from the authors' code: theirs gathers positives and negatives of each direction by boolean masks, two
    copies of the matrix; the value is the same.

    Example:
        >>> a = torch.eye(4)
        >>> round(nt_xent(a, a, temperature=0.1).item(), 6)  # log(1 + 6 / e^10)
        0.000272
    """
    _check_pair(a, b)
    temperature = check_number(temperature, 'temperature', above=0)
    if a.shape[-2] == 0:
        return (a.sum((-2, -1)) + b.sum((-2, -1))).to(a.dtype)
    losses, valid = view_contrast_terms(a, b, a, b, temperature=temperature)
    count = valid.sum(-1)
    return (losses.sum(-1) / count).to(a.dtype)


def _check_pair(a: Tensor, b: Tensor) -> None:
    """Raise unless ``a`` and ``b`` are views (..., N, D) of one shape on one device."""
    check_points(a, 'a', allow_empty=True)
    check_points(b, 'b', allow_empty=True)
    if a.shape != b.shape:
        raise ValueError(f'a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}: row i of b is the '
                         f'other view of row i of a')  # fmt: skip
    if a.shape[-1] == 0:
        raise ValueError(f'a must hold embeddings of at least one dimension, got shape {tuple(a.shape)}')
    check_device(b, a.device, 'b')


def view_contrast_terms(
    a: Tensor,
    b: Tensor,
    all_a: Tensor,
    all_b: Tensor,
    *,
    temperature: float,
    offset: int = 0,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NT-Xent of some anchors against the views of all: the losses of the 2 N anchors, and which of them count.

    Args:
        a: (..., N, D) first views of the anchors.
        b: (..., N, D) their second views.
        all_a: (..., M, D) first views of all samples, those of the anchors among them.
        all_b: (..., M, D) second views of all samples.
        temperature: Divides the cosines.
        offset: Row of the first anchor in ``all_a``.
        present: (..., M) bool, samples that take part; default all.

    Returns:
        (..., 2 N) losses in fp32 at least, 0 where an anchor does not count, and (..., 2 N) bool.
    """
    _check_pair(a, b)
    _check_pair(all_a, all_b)
    n, m = a.shape[-2], all_a.shape[-2]
    with exact_products(a):
        keys, finite = unit_rows(torch.cat([all_a, all_b], -2))
        valid = finite[..., :m] & finite[..., m:]
        if present is not None:
            valid = valid & present
        columns = torch.arange(2 * m, device=a.device)
        first = columns[:n] + offset
        itself, partner = torch.cat([first, first + m]), torch.cat([first + m, first])
        anchors = keys.index_select(-2, itself) if all_a is a else unit_rows(torch.cat([a, b], -2))[0]
        valid = torch.cat([valid, valid], -1)
        counts = valid.index_select(-1, itself)
        candidate = valid[..., None, :] & (columns != itself[:, None])
        partner = columns == partner[:, None]
        losses = info_nce(anchors @ keys.mT, partner & counts[..., None], candidate, temperature=temperature)
    return losses.masked_fill(~counts, 0.0), counts
