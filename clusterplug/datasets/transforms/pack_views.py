# SPDX-License-Identifier: Apache-2.0
"""The last step of a pipeline of views: what the model gets."""

from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement

from clusterplug.core.checks import check_choice
from clusterplug.datasets.transforms.multi_crop import image_tensor
from clusterplug.registry import TRANSFORMS

_INPUTS = ('views', 'matches', 'regions', 'num_regions', 'point_labels')


@TRANSFORMS.register_module()
class PackViews(BaseTransform):
    """Pack ``views`` and what belongs to them as ``inputs``, labels and ids as a data sample.

    Without ``views`` the image itself is the only view (validation). The data loader needs
    ``collate_fn=dict(type='pseudo_collate')``, which is mmengine's default.

    Args:
        meta_keys: entries of the results that the data sample carries, where they are there: ``sample_idx`` (int, the
            row of the data set, for tables of samples), ``gt_label``, ``split``.
        channel_order: as in :class:`MultiCrop`, for images without views.

    Example:
        >>> import torch
        >>> packed = PackViews()(dict(views=[torch.zeros(3, 8, 8)] * 2, sample_idx=7))
        >>> len(packed['inputs']['views']), packed['data_samples'].sample_idx
        (2, 7)
    """

    def __init__(self, meta_keys: tuple[str, ...] = ('sample_idx', 'gt_label', 'split'), channel_order: str = 'bgr'):
        self.meta_keys = tuple(meta_keys)
        self.channel_order = check_choice(channel_order, 'channel_order', ('bgr', 'rgb'))

    def transform(self, results: dict) -> dict:
        """Inputs and data sample."""
        if 'views' not in results:
            if 'img' not in results:
                raise ValueError('there are no views to pack; put MultiCrop or PointViews into the pipeline')
            results = {**results, 'views': [image_tensor(results['img'], self.channel_order)]}
        inputs = {name: results[name] for name in _INPUTS if results.get(name) is not None}
        meta = {name: results[name] for name in self.meta_keys if results.get(name) is not None}
        return dict(inputs=inputs, data_samples=BaseDataElement(metainfo=meta))
