# SPDX-License-Identifier: Apache-2.0
"""Finding texts by a sentence: token vectors of a frozen or trained encoder, clustered, in an index."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count
from clusterplug.layers import MultiVectorClustering
from clusterplug.retrieval.multi_vector_index import MultiVectorIndex
from clusterplug.retrieval.video_index import VideoIndex

__all__ = ['TextEncoder', 'build_text_index', 'read_texts']


class TextEncoder(nn.Module):
    """Token vectors of a transformers encoder, of length one; means of their clusters for an index.

    Args:
        pretrained: Folder of ``save_pretrained`` with model and tokenizer, or a name that is in the cache of this
            machine.
        num_clusters: Vectors kept of a text.
        query_clusters: Vectors kept of a question.
        max_length: Tokens of a text; the rest is cut off.

    Raises:
        FileNotFoundError: There is no such model on this machine.
    """

    def __init__(self, pretrained: str, num_clusters: int = 32, query_clusters: int = 8, max_length: int = 256):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
            self.model = AutoModel.from_pretrained(pretrained, local_files_only=True)
        except OSError as error:
            raise FileNotFoundError(
                f'no text encoder {pretrained!r} on this machine. Give a folder of save_pretrained, or fetch a public '
                f'one once with: hf download {pretrained}'
            ) from error
        self.max_length = check_count(max_length, 'max_length', 1)
        self.documents = MultiVectorClustering(num_clusters=num_clusters)
        self.queries = MultiVectorClustering(num_clusters=query_clusters)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit token vectors (N, L, D) of texts, and which are there (N, L)."""
        device = next(self.model.parameters()).device
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True, return_tensors='pt'
        ).to(device)
        hidden = self.model(**batch).last_hidden_state
        return F.normalize(hidden.float(), dim=-1), batch['attention_mask'].bool()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], vectors: str = 'multi', query: bool = False) -> list[Tensor]:
        """Return (n_i, D) vectors of each text on the CPU, or with ``vectors='single'`` a mean (D,) of length one."""
        tokens, mask = self(texts)
        if vectors == 'single':
            return list(F.normalize((tokens * mask.unsqueeze(-1)).sum(1), dim=-1).cpu())
        centers, there = (self.queries if query else self.documents)(tokens, mask)
        return [rows[valid] for rows, valid in zip(centers.cpu(), there.cpu())]


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """Return texts by id: lines of a text file by their number from 1, or of a .jsonl file by its "id" ("text").

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No text, a line that is no JSON object with "id" and "text", or an id twice.
    """
    path, found = Path(path), {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if not line.strip():
            continue
        name, text = str(number), line.strip()
        if path.suffix == '.jsonl':
            try:
                content = json.loads(line)
                name, text = str(content['id']), str(content['text'])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {number}: must be a JSON object with "id" and "text" ({error!r})'
                ) from None
        if name in found:
            raise ValueError(f'{path}, line {number}: id {name!r} comes twice')
        found[name] = text
    if not found:
        raise ValueError(f'{path} holds no text')
    return found


def build_text_index(
    encoder: TextEncoder,
    texts: dict[str, str],
    model_key: str,
    previous: VideoIndex | MultiVectorIndex | None = None,
    *,
    vectors: str = 'multi',
    batch_size: int = 32,
    path: str | os.PathLike | None = None,
    say: Callable[[int, int], None] | None = None,
) -> VideoIndex | MultiVectorIndex:
    """Encode texts; those that ``previous`` holds under the same model and with the same words are taken over.

    Args:
        encoder: The encoder, on its device.
        texts: Text by id.
        model_key: What the vectors depend on.
        previous: An index made before.
        vectors: 'multi' or 'single'.
        batch_size: Texts at once.
        path: File that the index is saved in, also on the way.
        say: Called with texts done and texts in all.

    Raises:
        ValueError: A number or a word out of range.
    """
    kind = {'multi': MultiVectorIndex, 'single': VideoIndex}[check_choice(vectors, 'vectors', ('single', 'multi'))]
    batch_size = check_count(batch_size, 'batch_size', 1)
    sources = {name: hashlib.blake2b(text.encode(), digest_size=12).hexdigest() for name, text in texts.items()}
    found: dict[str, Tensor] = {}
    if isinstance(previous, kind) and previous.model_key == model_key:
        rows = previous.sets() if vectors == 'multi' else previous.features
        found = {name: row for name, row in zip(previous.ids, rows) if previous.sources.get(name) == sources.get(name)}

    def index():
        done = [name for name in texts if name in found]
        rows, rest = [found[name] for name in done], (model_key, {}, {name: sources[name] for name in done})
        if vectors == 'multi':
            return MultiVectorIndex.of_sets(done, rows, *rest)
        return VideoIndex(done, torch.stack(rows) if rows else torch.zeros(0, 0), *rest)

    # texts of one length together: less padding
    new = sorted((name for name in texts if name not in found), key=lambda name: len(texts[name]))
    encoder.eval()
    saved = time.monotonic()
    for first in range(0, len(new), batch_size):
        names = new[first : first + batch_size]
        found.update(zip(names, encoder.encode([texts[name] for name in names], vectors)))
        if path is not None and time.monotonic() - saved > 2:
            index().save(path)
            saved = time.monotonic()
        if say is not None:
            say(len(texts) - len(new) + first + len(names), len(texts))
    made = index()
    if path is not None:
        made.save(path)
    return made
