# SPDX-License-Identifier: Apache-2.0
"""Text-video data sets for mm Runners: MSR-VTT, MSVD, LSMDC, ActivityNet, DiDeMo, any table of videos and captions."""

import os

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from clusterplug.datasets.video import annotations
from clusterplug.datasets.video.decoding import UnreadableVideo
from clusterplug.datasets.video.stores import open_store
from clusterplug.registry import DATASETS


@DATASETS.register_module()
class VideoTextDataset(BaseDataset):
    """Videos of a store with the captions of a table (:func:`~clusterplug.datasets.video.read_pairs`).

    Training: one sample for each caption. Test: one for each video, with all its captions. A video that cannot be
    decoded is replaced by another in training (``skipped`` of the sample names it); in a test it stays in its place,
    marked as not valid. Videos that are annotated and not there are left out and listed once.

    Args:
        ann_file: Annotations, relative to ``data_root``.
        videos: Folder, zip or LMDB, relative to ``data_root``; see
            :func:`~clusterplug.datasets.video.open_store`. Empty: the pipeline brings its own features.
        split_file: Names the videos of the split, relative to ``data_root``.
        split: Key of ``COUNTS``: the numbers of videos that the annotations must have.
        side_by_side: Frames beside each other in stored pictures. Defaults to 1.
        **options: Further arguments of mmengine's ``BaseDataset``: ``data_root``, ``pipeline``, ``test_mode``,
            ``indices`` (a part of the samples) ...

    Raises:
        FileNotFoundError: Annotations or videos are not there.
        ValueError: Annotations have another number of videos than the split; none of the videos is there.
    """

    METAINFO = dict(task='text-video retrieval')
    COUNTS: dict[str, int] = {}

    def __init__(
        self,
        ann_file: str,
        videos: str = '',
        split_file: str | None = None,
        split: str | None = None,
        side_by_side: int = 1,
        data_root: str = '',
        **options,
    ):
        if split is not None and split not in self.COUNTS:
            raise ValueError(f'split must be one of {", ".join(self.COUNTS) or "none"}, got {split!r}')
        self.split, self.missing = split, []
        self.split_file = None if split_file is None else os.path.join(data_root, split_file)
        self.store = open_store(os.path.join(data_root, videos), side_by_side) if videos else None
        self._broken: dict[str, str] = {}
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix={}, **options)

    def read(self) -> annotations.Captions:
        """Captions of each video of the split."""
        return annotations.chosen(annotations.read_pairs(self.ann_file), self.split_file)

    def load_data_list(self) -> list[dict]:
        """Samples of the split, without the videos that are not there."""
        captions = self.read()
        expected = self.COUNTS.get(self.split)
        if expected is not None and len(captions) != expected:
            raise ValueError(
                f'{self.ann_file} must have the {expected} videos of {type(self).__name__} {self.split}, got '
                f'{len(captions)}; set split=None for a part of the data set'
            )
        if self.store is not None:
            self.missing = [video for video in captions if video not in self.store]
            captions = {video: texts for video, texts in captions.items() if video in self.store}
            self._report_missing(len(captions))
        if self.test_mode:
            return [dict(video_id=video, captions=texts) for video, texts in captions.items()]
        return [
            dict(video_id=video, captions=[text], caption_rows=[row])
            for video, texts in captions.items()
            for row, text in enumerate(texts)
        ]

    def prepare_data(self, idx: int) -> dict:
        """Run the pipeline on a sample, or on another where its video cannot be read."""
        skipped = []
        for _ in range(self.max_refetch + 1):
            info = self.get_data_info(idx)
            video = info['video_id']
            info |= dict(store=self.store, test_mode=self.test_mode, skipped=skipped, problem='')
            try:
                if video in self._broken:
                    raise UnreadableVideo(self._broken[video])
                return self.pipeline(info)
            except UnreadableVideo as error:
                self._broken[video] = str(error)
                if self.test_mode:
                    return self.pipeline(self.get_data_info(idx) | dict(test_mode=True, problem=str(error)))
                if video not in dict(skipped):
                    skipped.append((video, str(error)))
                idx = self._another()
        raise RuntimeError(f'no readable video in {self.max_refetch + 1} tries; the last: {skipped[-1]}')

    def _another(self) -> int:
        """Index of a random sample, not one whose video is known to be broken as long as there is any other."""
        first = self._rand_another()
        following = (index % len(self) for index in range(first, first + len(self)))
        return next((i for i in following if self.get_data_info(i)['video_id'] not in self._broken), first)

    def _report_missing(self, left: int) -> None:
        if not left:
            raise ValueError(f'none of the {len(self.missing)} annotated videos is in {self.store.path}; check videos')
        if self.missing:
            names = ', '.join(self.missing[:20]) + (', ...' if len(self.missing) > 20 else '')
            text = f'{len(self.missing)} of {left + len(self.missing)} annotated videos are not in {self.store.path}'
            print_log(f'{text}: {names}', logger='current', level=30)


@DATASETS.register_module()
class MSRVTTDataset(VideoTextDataset):
    """MSR-VTT. ``split``: ``train-7k``, ``train-9k`` or ``test-1k`` (1k-A, from JSFusion).

    ``ann_file`` is ``MSRVTT_data.json`` with ``split_file`` ``MSRVTT_train.9k.csv``, or ``MSRVTT_JSFUSION_test.csv``.
    """

    COUNTS = {'train-7k': 7010, 'train-9k': 9000, 'test-1k': 1000}

    def read(self) -> annotations.Captions:
        """Captions of each video of the split."""
        return annotations.read_msrvtt(self.ann_file, self.split_file)


@DATASETS.register_module()
class MSVDDataset(VideoTextDataset):
    """MSVD: ``raw-captions.pkl`` with ``train_list.txt`` ...; about 40 captions of each video, all used in the test."""

    COUNTS = {'train': 1200, 'val': 100, 'test': 670}

    def read(self) -> annotations.Captions:
        """Captions of each video of the split."""
        return annotations.read_msvd(self.ann_file, self.split_file)


@DATASETS.register_module()
class LSMDCDataset(VideoTextDataset):
    """LSMDC: ``LSMDC16_annos_training.csv``, ``..._val.csv``, ``LSMDC16_challenge_1000_publictect.csv``."""

    COUNTS = {'test': 1000}

    def read(self) -> annotations.Captions:
        """Captions of each clip of the split."""
        return annotations.read_lsmdc(self.ann_file, self.split_file)


@DATASETS.register_module()
class ActivityNetDataset(VideoTextDataset):
    """ActivityNet Captions, video to paragraph: ``train.json``, ``val_1.json``."""

    COUNTS = {'train': 10009, 'val': 4917}

    def read(self) -> annotations.Captions:
        """One paragraph for each video of the split."""
        return annotations.read_activitynet(self.ann_file, self.split_file)


@DATASETS.register_module()
class DiDeMoDataset(VideoTextDataset):
    """DiDeMo, video to paragraph: ``train_data.json`` ...; load the first 31 seconds (``max_seconds=31``)."""

    def read(self) -> annotations.Captions:
        """One paragraph for each video of the split."""
        return annotations.read_didemo(self.ann_file, self.split_file)


def unreadable(samples: list) -> dict[str, str]:
    """Videos that a batch of samples reports as unreadable: id -> why."""
    found = {}
    for sample in samples:
        found |= dict(sample.get('skipped') or ())
        if sample.get('problem'):
            found[sample.video_id] = sample.problem
    return found
