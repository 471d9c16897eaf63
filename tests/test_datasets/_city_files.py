# SPDX-License-Identifier: Apache-2.0
"""Settings of small LiDAR cities, and a fingerprint of their files."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip('open3d')


SETTINGS = {'num_train': 3, 'num_val': 2, 'columns': 128, 'scans_per_street': 2, 'workers': 1, 'progress': False}
SMALL = {'num_train': 2, 'num_val': 1, 'columns': 32, 'scans_per_street': 2, 'workers': 1, 'progress': False}


def fingerprint(folder):
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file() and path.name[0] != '.')
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
