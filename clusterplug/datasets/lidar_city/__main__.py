# SPDX-License-Identifier: Apache-2.0
"""``python -m clusterplug.datasets.lidar_city OUT``: see :mod:`clusterplug.datasets.lidar_city.cli`."""

import sys

from clusterplug.datasets.lidar_city.cli import main

sys.exit(main())
