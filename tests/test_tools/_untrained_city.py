# SPDX-License-Identifier: Apache-2.0
"""A small generated city and a checkpoint of a segmentor that has learned nothing, for tools that read both."""

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / 'configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py')


def write_untrained_city(root: Path, **sizes) -> None:
    """Write ``root/city`` and ``root/start.pth``."""
    from mmdet3d.registry import MODELS
    from mmdet3d.utils import register_all_modules

    from clusterplug import compat
    from clusterplug.cli import load_config
    from clusterplug.datasets import generate_lidar_city

    compat.apply_all()
    register_all_modules()
    generate_lidar_city(root / 'city', progress=False, **sizes)
    torch.manual_seed(0)
    model = MODELS.build(load_config(CONFIG, work_dir=str(root)).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), root / 'start.pth')
