# SPDX-License-Identifier: Apache-2.0
"""The Cranfield collection as token vectors of a frozen sentence encoder."""

import re
import time
from pathlib import Path

import torch


def documents(folder: Path) -> list[tuple[str, str]]:
    """Return (title, abstract without the title) of the 1,400 documents."""
    found = []
    for part in re.split(r'^\.I \d+\s*$', (folder / 'cran.all.1400').read_text(), flags=re.M)[1:]:
        fields = dict(re.findall(r'^\.([TABW])\n(.*?)(?=^\.[TABW]$|\Z)', part, flags=re.M | re.S))
        title, body = (' '.join(fields.get(name, '').split()) for name in 'TW')
        found.append((title, body.removeprefix(title).strip() or title))
    return found


def queries(folder: Path) -> list[str]:
    """Return the 225 questions, in the order that the judgements count them."""
    parts = re.split(r'^\.I \d+\s*$', (folder / 'cran.qry').read_text(), flags=re.M)[1:]
    return [' '.join(part.replace('.W', ' ', 1).split()) for part in parts]


def judgements(folder: Path) -> torch.Tensor:
    """Return gains (225, 1400): 0 not judged or not relevant, then 1 to 4 (code 4 to 1 of the collection)."""
    gains = torch.zeros(225, 1400)
    for line in (folder / 'cranqrel').read_text().split('\n'):
        if line.split():
            query, document, code = (int(each) for each in line.split()[:3])
            gains[query - 1, document - 1] = 5 - code if 1 <= code <= 4 else 0
    return gains


def token_vectors(model_folder: str, texts: list[str], length: int, batch_size: int = 32):
    """Return vectors (N, L, D) in fp16, mask (N, L), and the seconds it took; sorted by length inside."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder).eval()
    ids = tokenizer(texts, truncation=True, max_length=length)['input_ids']
    longest = max(map(len, ids))
    vectors = torch.zeros(len(texts), longest, model.config.hidden_size, dtype=torch.float16)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    start = time.process_time()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer.pad({'input_ids': [ids[i] for i in rows]}, return_tensors='pt')
        with torch.inference_mode():
            out = model(**batch).last_hidden_state
        vectors[rows, : out.shape[1]] = out.half()
        mask[rows, : out.shape[1]] = batch['attention_mask'].bool()
    return vectors, mask, time.process_time() - start
