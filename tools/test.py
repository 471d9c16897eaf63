#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Test a model: ``python tools/test.py CONFIG CKPT``; ``--help`` lists the options, which are those of mmdet3d."""

import sys
from pathlib import Path

# A checkout works without being installed; in an installed package this folder holds no clusterplug.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.cli import run_test, run_tool

if __name__ == '__main__':
    sys.exit(run_tool(run_test, 'test'))
