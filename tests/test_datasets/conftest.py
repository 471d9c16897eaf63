# SPDX-License-Identifier: Apache-2.0
"""What several tests of data sets start from."""

import shutil

import pytest


@pytest.fixture(params=['pyav', 'ffmpeg'])
def shrink(request):
    """Function that re-encodes a video, for each of the two encoders."""
    pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')
    from clusterplug.datasets.video._ffmpeg import shrink_with_ffmpeg
    from clusterplug.datasets.video.encoding import shrink_video

    if request.param == 'ffmpeg' and shutil.which('ffmpeg') is None:
        pytest.skip('needs ffmpeg')
    return {'pyav': shrink_video, 'ffmpeg': shrink_with_ffmpeg}[request.param]


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Folder of the smallest LiDAR city; it is only read."""
    pytest.importorskip('open3d')
    from _city_files import SMALL

    from clusterplug.datasets import generate_lidar_city

    return generate_lidar_city(tmp_path_factory.mktemp('small'), seed=5, **SMALL)
