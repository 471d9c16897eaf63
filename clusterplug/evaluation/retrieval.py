# SPDX-License-Identifier: Apache-2.0
"""R@K, median and mean rank of text-video retrieval for mm Runners."""

from collections import Counter

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from clusterplug.evaluation.retrieval_ranks import rank_summary, retrieval_ranks
from clusterplug.registry import METRICS

DIRECTIONS = ('t2v', 'v2t')


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall at 1, 5 and 10 (percent), median rank (MdR) and mean rank (MnR), text to video and video to text.

    Each sample is one video with all its captions; see :func:`~clusterplug.evaluation.retrieval_ranks` for several
    captions of a video and for ties. Samples that could not be read (``valid`` False) are left out, counted and named
    in the log. Samples that the sampler repeated to fill up the ranks count once.

    Args:
        directions (Sequence[str]): Of ``'t2v'`` and ``'v2t'``. Defaults to both.
        chunk_size (int, optional): Queries at once.
        collect_device (str): ``'cpu'`` or ``'gpu'``, where results of ranks are gathered. Defaults to ``'cpu'``.
        prefix (str, optional): Of the names. Defaults to ``'retrieval'``.
        **options: Further arguments of mmengine's ``BaseMetric``.

    Raises:
        ValueError: An unknown direction. When evaluating: no sample could be read; two videos have the same id.

    Example:
        ``val_evaluator = dict(type='clusterplug.RetrievalMetric')`` logs ``retrieval/t2v/R1`` and the others.
    """

    default_prefix = 'retrieval'

    def __init__(self, directions=DIRECTIONS, chunk_size=None, collect_device='cpu', prefix=None, **options):
        super().__init__(collect_device=collect_device, prefix=prefix, **options)
        if isinstance(directions, str):
            directions = (directions,)
        if not directions or any(direction not in DIRECTIONS for direction in directions):
            raise ValueError(f'directions must be some of {", ".join(DIRECTIONS)}, got {list(directions)}')
        self.directions, self.chunk_size = tuple(directions), chunk_size

    def process(self, data_batch, data_samples) -> None:
        """Keep the features of a batch.

        Args:
            data_batch: Not used.
            data_samples (Sequence[dict]): With ``video_id``, ``video_feature`` (D,), ``text_features`` (C, D), and
                optionally ``valid`` and ``problem``.
        """
        for sample in data_samples:
            entry = dict(video_id=sample['video_id'], valid=bool(sample.get('valid', True)))
            if entry['valid']:
                entry['video'] = sample['video_feature'].detach().float().cpu()
                entry['text'] = sample['text_features'].detach().float().cpu()
            else:
                entry['problem'] = str(sample.get('problem', 'unreadable'))
            self.results.append(entry)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Ranks and their summary over all videos.

        Args:
            results: Entries of all ranks.

        Returns:
            dict: ``t2v/R1`` ... ``v2t/MnR``, ``videos``, ``texts`` and ``unreadable`` (numbers).
        """
        unreadable = [entry for entry in results if not entry['valid']]
        if unreadable:
            names = '\n'.join(f'  {entry["video_id"]}: {entry["problem"]}' for entry in unreadable)
            MMLogger.get_current_instance().warning(f'{len(unreadable)} videos were left out:\n{names}')
        results = [entry for entry in results if entry['valid']]
        if not results:
            raise ValueError(f'no video could be evaluated, {len(unreadable)} were unreadable; see the log above')
        names = [entry['video_id'] for entry in results]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)[:5]
        if twice:
            raise ValueError(f'video ids must differ within a test set, got more than one of {", ".join(twice)}')
        counts = torch.tensor([len(entry['text']) for entry in results])
        owner = torch.repeat_interleave(torch.arange(len(results)), counts)
        text, video = torch.cat([e['text'] for e in results]), torch.stack([e['video'] for e in results])
        ranks = dict(zip(DIRECTIONS, retrieval_ranks(text, video, owner, self.chunk_size)))
        summary = {
            f'{direction}/{name}': value
            for direction in self.directions
            for name, value in rank_summary(ranks[direction]).items()
        }
        return summary | dict(videos=len(results), texts=len(text), unreadable=len(unreadable))
