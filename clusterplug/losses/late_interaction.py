# SPDX-License-Identifier: Apache-2.0
"""Contrastive loss of sets of vectors by Chamfer similarity, over the documents of all ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_mask, check_number, check_points
from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.core.numerics import working_dtype
from clusterplug.functional import chamfer_similarity, info_nce
from clusterplug.registry import MODELS


@MODELS.register_module()
class LateInteractionLoss(nn.Module):
    r"""Tell the document of each query from all other documents of the batch.

    .. math:: L = -\frac{1}{|I|} \sum_{i \in I} \log
              \frac{e^{S(Q_i, D_i) / \tau}}{\sum_j e^{S(Q_i, D_j) / \tau}}, \qquad
              S(Q, D) = \sum_{u \in Q} \max_{v \in D} \langle u, v \rangle

    Put :class:`~clusterplug.layers.MultiVectorClustering` between the encoders and this loss: then the few centers and
    their masks travel between ranks, not the tokens.

    Args:
        temperature: Divides the scores. S grows with the number of query vectors: 0.02 to 0.05 times that number, or
            ``average=True`` and 0.02 to 0.05.
        average: Divide S by the number of the query's valid vectors.
        gather: Take the documents of all ranks.

    Shapes of ``forward``: ``queries`` (B, L, D), ``query_mask`` (B, L) bool; ``documents`` (M, T, D) with M >= B,
    ``document_mask`` (M, T) bool; None = all valid. Document i belongs to query i; documents from B on are hard
    negatives, of all queries. B, M, L and T may differ between ranks.

    Returns of ``forward``:
        0-dim tensor, fp32 or float64. Queries without a valid vector, or whose document has none, are ignored;
        documents without one are no negatives; 0 with a gradient path where nothing is left. Over ranks the mean of
        losses and of gradients is that of one process with the joined batch, and there is one host synchronization,
        for their sizes.

    Raises:
        TypeError, ValueError: Shapes or kinds that do not fit, fewer documents than queries, ``temperature`` not above
            0.

    Source: Khattab and Zaharia, "ColBERT", arXiv 2004.12832; Veneroso et al., "CRISP", arXiv 2505.11471, section 3.
    **Differs from sigridjineth/crisp-py (MIT)**, which averages both directions, each a mean over vectors: the paper
    takes the sum over query vectors only.

    Example:
        >>> loss = LateInteractionLoss(temperature=1.0)
        >>> x = torch.eye(3)[:, None]  # three sequences of one vector
        >>> mask = torch.ones(3, 1, dtype=torch.bool)
        >>> round(loss(x, mask, x, mask).item(), 4)  # log(1 + 2 / e)
        0.5514
    """

    def __init__(self, temperature: float = 1.0, average: bool = False, gather: bool = True):
        super().__init__()
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.average, self.gather = bool(average), bool(gather)

    def forward(
        self, queries: Tensor, query_mask: Tensor | None, documents: Tensor, document_mask: Tensor | None
    ) -> Tensor:
        query_mask, document_mask = self._check(queries, query_mask, documents, document_mask)
        offset, ranks = 0, world_size() if self.gather else 1
        if ranks > 1:
            documents, document_mask, offset = _gather(documents, document_mask)
        scores = chamfer_similarity(queries, query_mask, documents, document_mask)
        if self.average:
            scores = scores / query_mask.sum(1, keepdim=True).clamp(min=1)
        candidate = document_mask.any(1)
        own = torch.arange(len(queries), device=queries.device) + offset
        valid = query_mask.any(1) & candidate.index_select(0, own)
        positive = (own.unsqueeze(-1) == torch.arange(len(documents), device=own.device)) & valid.unsqueeze(-1)
        scores = scores.masked_fill(~candidate, 0.0)
        losses = info_nce(scores, positive, candidate.expand_as(scores), temperature=self.temperature)
        total = valid.sum()
        if ranks > 1:
            # over the mean number of queries a rank, so that the mean over ranks is the mean over all queries
            total = gather_ranks(total).sum() / ranks
            return losses.sum() / total.clamp(min=1 / ranks) + 0 * documents.sum()
        return losses.sum() / total.clamp(min=1)

    @staticmethod
    def _check(queries, query_mask, documents, document_mask) -> tuple[Tensor, Tensor]:
        masks = []
        for x, name, mask, of_mask in (
            (queries, 'queries', query_mask, 'query_mask'), (documents, 'documents', document_mask, 'document_mask')
        ):  # fmt: skip
            check_points(x, name)
            if x.dim() != 3:
                raise ValueError(f'{name} must have shape (sequences, vectors, channels), got {tuple(x.shape)}')
            check_mask(mask, x.shape[:2], x.device, of_mask)
            masks.append(x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)
        if len(documents) < len(queries):
            raise ValueError(
                f'documents must hold one for each query, and then hard negatives, got {len(documents)} documents for '
                f'{len(queries)} queries'
            )
        return masks[0], masks[1]

    def extra_repr(self) -> str:
        """Return what ``print`` shows in the parentheses."""
        return f'temperature={self.temperature}, average={self.average}, gather={self.gather}'


def _gather(documents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the documents and masks of all ranks, padded to one size, and where this rank's begin."""
    sizes = gather_ranks(torch.tensor(documents.shape[:2], device=documents.device)).amax(0).tolist()
    padding = (0, sizes[1] - documents.shape[1], 0, sizes[0] - documents.shape[0])
    mask = F.pad(mask, padding)
    # masked vectors may hold anything, but their gradients must not
    values = torch.where(mask.unsqueeze(-1), F.pad(documents, (0, 0, *padding)).to(working_dtype(documents.dtype)), 0.0)
    return gather_ranks(values).flatten(0, 1), gather_ranks(mask).flatten(0, 1), rank() * sizes[0]
