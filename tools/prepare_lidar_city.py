#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write the LiDAR city: ``python tools/prepare_lidar_city.py --out data/lidar_city --num-train 160 --num-val 40``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.datasets.lidar_city.cli import main
from clusterplug.user_errors import run_tool

if __name__ == '__main__':
    sys.exit(run_tool(main, 'prepare_lidar_city'))
