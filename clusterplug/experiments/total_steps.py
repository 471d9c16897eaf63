# SPDX-License-Identifier: Apache-2.0
"""Notes how many steps a training has, which mmengine's log files do not tell."""

from pathlib import Path

from mmengine.hooks import Hook

from clusterplug.core.files import write_bytes

FILE = 'total_steps'


class TotalSteps(Hook):
    """Write the number of training steps into ``<folder>/total_steps`` before the first."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def before_train(self, runner) -> None:
        write_bytes(self.folder / FILE, str(runner.max_iters).encode())
