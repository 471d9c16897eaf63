# SPDX-License-Identifier: Apache-2.0
"""Text-video data: stores, decoders, annotation formats, data sets and pipeline steps."""

import importlib

_NAMES = {
    'UnreadableVideo': 'decoding', 'Video': 'decoding', 'available_backends': 'decoding', 'open_video': 'decoding',
    'sample_frames': 'sampling',
    'VideoStore': 'stores', 'open_store': 'stores', 'write_lmdb': 'stores',
    'CLIPTokenizer': 'tokenizers', 'WordTokenizer': 'tokenizers', 'write_vocabulary': 'tokenizers',
    'read_activitynet': 'annotations', 'read_didemo': 'annotations', 'read_ids': 'annotations',
    'read_lsmdc': 'annotations', 'read_msrvtt': 'annotations', 'read_msvd': 'annotations',
    'read_pairs': 'annotations',
    'ActivityNetDataset': 'dataset', 'DiDeMoDataset': 'dataset', 'LSMDCDataset': 'dataset', 'MSRVTTDataset': 'dataset',
    'MSVDDataset': 'dataset', 'VideoTextDataset': 'dataset',
    'LoadFeatures': 'transforms', 'LoadVideoFrames': 'transforms', 'PackVideoText': 'transforms',
    'ResizeAndCrop': 'transforms', 'TokenizeCaptions': 'transforms',
}  # fmt: skip

__all__ = sorted(_NAMES)


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')


def __dir__():
    return sorted(__all__)
