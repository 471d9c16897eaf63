# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one, whose samples know their row in the whole."""

from typing import Any

from mmengine.dataset import ConcatDataset

from clusterplug.registry import DATASETS


@DATASETS.register_module()
class IndexedConcatDataset(ConcatDataset):
    """mmengine's ``ConcatDataset``, with ``sample_idx`` counted over all parts.

    In mmengine each part counts its own samples from 0. A :class:`~clusterplug.memory.SampleTable`, or a file of
    labels with one row a sample of the whole, would then give the labels of one part to another. Here ``sample_idx`` of
    what a pipeline returns, in the data sample or in the dict itself, is the position in the whole.

    Args:
        datasets, lazy_init, ignore_keys: as of mmengine's ``ConcatDataset``.

    Transforms inside the pipelines (:class:`~clusterplug.datasets.transforms.SampleValues`) still see the number within
    the part.

    Example:
        In a config: ``dataset=dict(type='clusterplug.IndexedConcatDataset', datasets=[dict(...), dict(...)])``
    """

    def __getitem__(self, idx: int) -> Any:
        """One sample, with its position in the whole."""
        found = super().__getitem__(idx)
        part, _ = self._get_ori_dataset_idx(idx)
        start = 0 if part == 0 else self.cumulative_sizes[part - 1]
        # of the sample that came: where a pipeline gives None, a data set of mmengine draws another one
        sample = found.get('data_samples') if isinstance(found, dict) else None
        if sample is not None and 'sample_idx' in sample:
            sample.set_metainfo(dict(sample_idx=start + int(sample.sample_idx)))
        if isinstance(found, dict) and 'sample_idx' in found:
            found['sample_idx'] = start + int(found['sample_idx'])
        return found
