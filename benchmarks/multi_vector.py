# SPDX-License-Identifier: Apache-2.0
"""Several vectors an item: quality against bytes on Cranfield and MSR-VTT frames, and the time of the kernels.

    CLUSTERPLUG_DATA=DATA OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/multi_vector.py --encoder MINILM_FOLDER
    ... --page docs/benchmarks.md

The text encoder (a folder of save_pretrained, all-MiniLM-L6-v2 in the published figures) stays frozen; a linear map to
64 channels is trained over its token vectors. Cranfield: titles find their abstracts in training, the 225 questions of
the collection are the test. MSR-VTT 1k-A frames: two DINOv2-S vectors (class token, mean patch) a frame, another linear
map, captions as token vectors; 300 of the videos with two frames or more train, the others are the test.
"""

import argparse
import copy
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _cranfield import documents, judgements, queries, token_vectors
from _msrvtt import captions_of, patch_vectors, videos_of
from _timing import describe_machine, one_thread_each, peak_bytes, publish
from torch import nn

from clusterplug.functional import chamfer_similarity, cluster_vectors, pool_vectors
from clusterplug.layers import MultiVectorClustering
from clusterplug.losses import LateInteractionLoss

CHANNELS, STEPS = 64, 80
PARTS = ('time', 'frames', 'cranfield')


class Sets:
    """Token vectors (N, L, D) in fp16 and their mask."""

    def __init__(self, vectors, mask):
        self.vectors, self.mask = vectors, mask

    def __len__(self):
        return len(self.vectors)

    def take(self, rows):
        return self.vectors[rows].float(), self.mask[rows]


def everything(x, mask):
    return x, mask


def mean(x, mask):
    centers, there = cluster_vectors(x, mask, 1)
    return F.normalize(centers, dim=-1), there


class Encoder(nn.Module):
    """One linear map a side, to unit vectors."""

    def __init__(self, query_channels: int, document_channels: int):
        super().__init__()
        self.query, self.document = (nn.Linear(each, CHANNELS) for each in (query_channels, document_channels))

    def forward(self, x, side: str):
        return F.normalize(getattr(self, side)(x), dim=-1)


def train(model, data, pairs, reduce_query, reduce_document, seed, steps=STEPS, size=24):
    """Train on (query row, document row) pairs; a negative of the batch is another pair."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    loss = LateInteractionLoss(0.05, average=True)
    for _ in range(steps):
        rows = pairs[torch.randperm(len(pairs), generator=generator)[:size]]
        q, q_mask = data['queries'].take(rows[:, 0])
        d, d_mask = data['documents'].take(rows[:, 1])
        sides = reduce_query(model(q, 'query'), q_mask), reduce_document(model(d, 'document'), d_mask)
        value = loss(*sides[0], *sides[1])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


@torch.no_grad()
def encode(model, sets, rows, side: str, reduce: Callable):
    """Return vectors and mask of rows, in parts; documents rounded to fp16 as an index keeps them."""
    parts = []
    for part in rows.split(128):
        x, mask = sets.take(part)
        vectors, there = reduce(model(x, side), mask)
        parts.append(((vectors.half() if side == 'document' else vectors), there))
    return tuple(torch.cat(each) for each in zip(*parts))


def measure(scores, gains) -> tuple[float, float]:
    """Return R@1 (share of queries whose first answer is relevant) and NDCG@10 over queries with a relevant item."""
    kept = gains.amax(1) > 0
    scores, gains = scores[kept], gains[kept]
    discount = 1 / torch.arange(2, 12).float().log2()
    found = gains.gather(1, scores.topk(10, dim=1).indices)
    ideal = gains.topk(10, dim=1).values
    ndcg = (found * discount).sum(1) / (ideal * discount).sum(1)
    return float((found[:, 0] > 0).float().mean()), float(ndcg.mean())


def compare(data, pairs, gains, test_queries, test_documents, seeds, small, large) -> list[str]:
    """Return the table of one collection; ``small`` and ``large`` are numbers of query and document vectors."""
    found: dict[str, list] = {}

    def add(name, model, query, document):
        q = encode(model, data['tests'], test_queries, 'query', query)
        d = encode(model, data['documents'], test_documents, 'document', document)
        scores = chamfer_similarity(*q, *d)
        bytes_of = float(d[1].sum(1).float().mean()) * CHANNELS * 2
        found.setdefault(name, []).append((*measure(scores, gains), bytes_of))

    for seed in range(seeds):
        torch.manual_seed(seed)
        start = Encoder(data['queries'].vectors.shape[-1], data['documents'].vectors.shape[-1])
        single = train(copy.deepcopy(start), data, pairs, mean, mean, seed, 2 * STEPS)
        add('single vector', single, mean, mean)
        start = train(start, data, pairs, everything, everything, seed)
        whole = train(copy.deepcopy(start), data, pairs, everything, everything, seed + 100)
        add('all vectors', whole, everything, everything)
        add('Ward pooling, factor 4, afterwards', whole, everything, lambda x, mask: pool_vectors(x, mask, 4))
        for numbers in (large, small):
            layers = [MultiVectorClustering(num_clusters=each) for each in numbers]
            name = 'C{}x{}'.format(*numbers)
            add(f'{name}, clustered afterwards', whole, *layers)
            add(f'{name}, trained (CRISP)', train(copy.deepcopy(start), data, pairs, *layers, seed + 100), *layers)
    lines = []
    for name, rows in found.items():
        values = np.array(rows)
        spread = values.std(0, ddof=1) if len(rows) > 1 else np.zeros(3)
        cells = [f'{values[:, i].mean():.3f} +- {spread[i]:.3f}' for i in range(2)]
        lines.append(f'| {name} | {" | ".join(cells)} | {values[:, 2].mean():,.0f} |')
    return lines


def cranfield(folder: Path, encoder: str, seeds: int, cache: Path | None) -> list[str]:
    papers, gains = documents(folder), judgements(folder)
    if cache is not None and cache.is_file():
        made = torch.load(cache)
    else:
        texts = dict(titles=[t for t, _ in papers], queries=queries(folder), bodies=[body for _, body in papers])
        made = {name: token_vectors(encoder, each, 128 if name == 'bodies' else 32) for name, each in texts.items()}
        if cache is not None:
            torch.save(made, cache)
    titles, questions, bodies = (made[name] for name in ('titles', 'queries', 'bodies'))
    data = {'queries': Sets(*titles[:2]), 'tests': Sets(*questions[:2]), 'documents': Sets(*bodies[:2])}
    pairs = torch.arange(len(papers))[:, None].expand(-1, 2)
    table = compare(
        data, pairs, gains, torch.arange(225), torch.arange(len(papers)), seeds, small=(4, 8), large=(8, 32)
    )
    head = [
        f'| Cranfield, 1,400 abstracts, 225 questions ({seeds} seeds) | R@1 | NDCG@10 | bytes an item |',
        '|---|---|---|---|',
    ]
    return [*head, *table]


def msrvtt(data_folder: Path, encoder: str, seeds: int, cache: Path | None) -> list[str]:
    file = None if cache is None else cache.with_name(cache.name + '.frames')
    if file is not None and file.is_file():
        texts, vectors, mask = torch.load(file)
    else:
        captions = captions_of(data_folder / 'video')
        videos = {name: halves for name, halves in videos_of(data_folder / 'video', 4).items() if name in captions}
        vectors, mask = patch_vectors(data_folder, videos)
        texts = token_vectors(encoder, [captions[name] for name in videos], 32)[:2]
        if file is not None:
            torch.save((texts, vectors, mask), file)
    sets = Sets(*texts)
    data = {'queries': sets, 'tests': sets, 'documents': Sets(vectors, mask)}
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    train_rows, test_rows = order[:300], order[300:]
    gains = torch.eye(len(test_rows))
    table = compare(data, train_rows[:, None].expand(-1, 2), gains, test_rows, test_rows, seeds, (4, 8), (8, 32))
    head = [
        f'| MSR-VTT frames, {len(test_rows)} test videos of {float(mask.sum(1).float().mean()):.0f} vectors '
        f'({seeds} seeds) | R@1 | NDCG@10 | bytes an item |',
        '|---|---|---|---|',
    ]
    return [*head, *table]


def loop_over_sequences(x, num_clusters, num_iters=20):
    """The unofficial code's method: a sequence, a cluster at a time, k-means++ by distances to all, with autograd."""
    found = []
    for tokens in x:
        chosen = [tokens[torch.randint(len(tokens), (1,))]]
        while len(chosen) < num_clusters:
            nearest = torch.stack([torch.cdist(tokens, each[None]).flatten() for each in chosen]).amin(0)
            chosen.append(tokens[torch.multinomial(nearest.detach().square(), 1)])
        centers, before = torch.cat(chosen), None
        for _ in range(num_iters + 1):
            labels = torch.cdist(tokens, centers).argmin(1)
            if before is not None and torch.equal(labels, before):
                break
            before = labels
            for each in range(num_clusters):
                member = labels == each
                centers[each] = tokens[member].mean(0) if member.any() else tokens[torch.randint(len(tokens), (1,))[0]]
        found.append(centers)
    return torch.stack(found)


def kernels(encoder: str | None) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    noise = F.normalize(torch.randn(128, 512, 128, generator=generator), dim=-1)
    concepts = torch.randn(128, 32, 128, generator=generator)[:, torch.arange(512) % 32]
    concepts = F.normalize(concepts + 0.6 * torch.randn(128, 512, 128, generator=generator), dim=-1)

    def seconds(call, *inputs, repeats=5):
        call(*inputs)
        times = []
        for _ in range(repeats):
            start = time.process_time()
            call(*inputs)
            times.append(time.process_time() - start)
        return sorted(times)[len(times) // 2]

    def ours(x):
        return cluster_vectors(x, None, 32)[0]

    def loop(x):
        return loop_over_sequences(x.clone().requires_grad_(), 32)

    def step(call, x):
        call(x.clone().requires_grad_()).sum().backward()

    lines = ['| one core | time |', '|---|---|']
    for name, x in (('noise', noise), ('32 concepts a sequence', concepts)):
        once, both = seconds(ours, x), seconds(step, ours, x)
        theirs, theirs_both = seconds(loop, x[:4], repeats=3) * 32, seconds(step, loop, x[:4], repeats=3) * 32
        lines += [
            f'| cluster_vectors, 128 x 512 x 128, k 32, {name}: forward, with backward | {once:.3f} s, {both:.3f} s |',
            f'| a loop over sequences and clusters (4 sequences, times 32) | {theirs:.1f} s ({theirs / once:.0f} x), '
            f'{theirs_both:.1f} s ({theirs_both / both:.0f} x) |',
        ]
        if encoder and x is noise:
            model = seconds(encode_tokens, encoder, 8, 512, repeats=3) * 16
            lines.append(
                f'| MiniLM-L6, forward pass of 128 x 512 tokens (8, times 16) | {model:.0f} s; cluster_vectors is '
                f'{100 * once / model:.1f} % of it |'
            )
    q, d = torch.randn(1, 32, 128, generator=generator), torch.randn(1000, 180, 128, generator=generator)
    mask = torch.ones(1000, 180, dtype=torch.bool)
    maxsim = seconds(lambda: chamfer_similarity(q, None, d, mask), repeats=7)
    plain = seconds(lambda: torch.einsum('qld,nmd->qnlm', q, d).amax(-1).sum(-1), repeats=7)
    unit = F.normalize(d[:50], dim=-1)
    pooled = seconds(lambda: pool_vectors(unit, None, 2), repeats=3) / 50
    return [
        *lines,
        f'| Chamfer, 32 query vectors, 1,000 x 180 x 128, masked | {maxsim * 1e3:.0f} ms |',
        f'| the same by einsum without masks | {plain * 1e3:.0f} ms |',
        f'| pool_vectors, a document of 180 vectors | {pooled * 1e3:.1f} ms |',
        *many_pairs(generator),
    ]


def many_pairs(generator) -> list[str]:
    """Chamfer of 1,000 queries and 10,000 documents: time, and what it holds beside its input and result."""
    q = torch.randn(1000, 8, 128, generator=generator)
    d = torch.randn(10_000, 32, 128, generator=generator)
    start = time.process_time()
    chamfer_similarity(q, None, d, None)
    used = time.process_time() - start
    peak = peak_bytes(lambda: chamfer_similarity(q[:200], None, d, None)) - 200 * 10_000 * 4
    return [
        f'| Chamfer, 1,000 queries of 8 x 10,000 documents of 32 vectors, 128 channels | {used:.1f} s, at most '
        f'{peak / 1e6:.0f} MB beside input and result (all products: {1000 * 8 * 10_000 * 32 * 4 / 1e9:.0f} GB) |'
    ]


@functools.cache
def _text_model(folder: str):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


@torch.inference_mode()
def encode_tokens(folder: str, number: int, length: int):
    """One forward pass of the text encoder over token ids."""
    model = _text_model(folder)
    ids = torch.randint(1000, 20_000, (number, length), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--encoder', help='folder of a text encoder; without it the kernels alone are timed')
    parser.add_argument('--cache', type=Path, help='file that keeps the token vectors of Cranfield (default: none)')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS, help='each is a part of the page of its own')
    parser.add_argument('--page', help='page whose parts between the marks "multi_vector_..." are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(('numpy',))
    data, cache = Path(os.environ.get('CLUSTERPLUG_DATA', '')), options.cache
    calls = {
        'time': lambda: kernels(options.encoder),
        'frames': lambda: msrvtt(data, options.encoder, options.seeds, cache),
        'cranfield': lambda: cranfield(data / 'retrieval', options.encoder, options.seeds, cache),
    }
    for part in options.only:
        if part != 'time' and not options.encoder:
            print(f'{part}: needs --encoder')
            continue
        with one_thread_each():
            lines = ['', *(f'{line}<br>' for line in machine), '', *calls[part](), '']
        print('\n'.join(lines), flush=True)
        if options.page:
            publish(options.page, f'multi_vector_{part}', lines)


if __name__ == '__main__':
    main()
