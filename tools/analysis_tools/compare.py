#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a baseline and methods over seeds and compare their test metrics: ``compare.py BASE METHOD ...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.cli import run_tool
from clusterplug.experiments.cli import main

if __name__ == '__main__':
    sys.exit(run_tool(main, 'compare'))
