#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a model: ``python tools/train.py CONFIG``; ``--help`` lists the options, which are those of mmdet3d."""

import sys
from pathlib import Path

# A checkout works without being installed; in an installed package this folder holds no clusterplug.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.cli import run_tool, run_train

if __name__ == '__main__':
    sys.exit(run_tool(run_train, 'train'))
