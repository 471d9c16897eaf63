# SPDX-License-Identifier: Apache-2.0
"""A video with its captions, as data sets hand it on and metrics read it."""

from mmengine.structures import BaseDataElement


class VideoTextSample(BaseDataElement):
    """One video with its captions.

    Metainfo: ``video_id``, ``captions`` (list of str), ``valid`` (False when it could not be read), ``problem`` (why),
    ``skipped`` (``(video_id, problem)`` of videos in whose place this one was loaded), ``frame_times`` (seconds).
    Data after ``predict``: ``video_feature`` (D,), ``text_features`` (C, D), of length one.
    """
