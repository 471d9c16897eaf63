# SPDX-License-Identifier: Apache-2.0
"""Says at the end of a run which videos could not be read."""

from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook

from clusterplug.core.files import whole_file
from clusterplug.registry import HOOKS

FILE = 'unreadable_videos.txt'


@HOOKS.register_module()
class UnreadableVideosHook(Hook):
    """Collect the videos that were skipped in training, over all workers and ranks.

    After each epoch the log names those that are new; after the training it lists all of them, and
    ``unreadable_videos.txt`` in the work folder holds id and reason, one a line (an empty file: every video was read).

    Example:
        ``custom_hooks = [dict(type='clusterplug.UnreadableVideosHook')]``
    """

    priority = 'LOW'

    def __init__(self):
        self.found: dict[str, str] = {}
        self._told: set[str] = set()

    def before_train(self, runner) -> None:
        """Begin an empty list: a second training of one process has its own."""
        self.found, self._told = {}, set()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Note what the samples of a batch report."""
        for sample in (data_batch or {}).get('data_samples') or ():
            self.found |= dict(sample.get('skipped') or ())

    def after_train_epoch(self, runner) -> None:
        """Tell what is new."""
        new = {video: why for video, why in self.found.items() if video not in self._told}
        if new:
            self._told |= set(new)
            runner.logger.warning(f'{len(new)} videos could not be read and were replaced:\n{_lines(new)}')

    def after_train(self, runner) -> None:
        """List all, and write the list."""
        found = {video: why for part in all_gather_object(self.found) for video, why in part.items()}
        if not is_main_process():
            return
        with whole_file(Path(runner.work_dir) / FILE) as file:
            file.write(_lines(found, '') + ('\n' if found else ''))
        if found:
            runner.logger.warning(f'{len(found)} videos could not be read in this training:\n{_lines(found)}')


def _lines(found: dict[str, str], indent: str = '  ') -> str:
    return '\n'.join(f'{indent}{video}\t{why}' for video, why in sorted(found.items()))
