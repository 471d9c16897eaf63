# SPDX-License-Identifier: Apache-2.0
"""One training and its test, with the result in a file: ``python -m clusterplug.experiments.run WORK_DIR``."""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.files import write_json
from clusterplug.core.outputs import difference, locked_folder, read_marker
from clusterplug.experiments.identity import content_of, versions


class Run(NamedTuple):
    """What is trained and tested.

    Attributes:
        config: path of a config, or ``package::path``.
        options: values that replace some of the config, with dotted keys; anything that JSON can hold.
        work_dir: folder for logs, checkpoints and ``result.json``.
    """

    config: str
    options: dict
    work_dir: Path

    def settings(self) -> dict:
        """What the result depends on, as JSON gives it back: the whole config with its bases, and the versions."""
        found = dict(config=str(self.config), options=self.options)
        found |= dict(content=content_of(str(self.config), self.options), versions=versions())
        return json.loads(json.dumps(found))


def result_of(run: Run) -> dict | None:
    """The result of a run that was finished with these settings, None if there is none.

    Returns:
        ``metrics``: what the test's evaluators gave, by name without prefix; ``seconds_per_step`` in training, median;
        ``minutes`` of the last start.
    """
    result = read_marker(Path(run.work_dir) / 'result.json')
    if result is None or _difference(result.pop('settings', None) or {}, run.settings()):
        return None
    return result


def train_and_test(run: Run) -> dict:
    """Train the run's model, from its last checkpoint if there is one, test it, and write ``result.json``.

    A work folder that holds checkpoints of other settings is refused, and so is one that another process trains in.

    Returns:
        As :func:`result_of`.

    Raises:
        FileExistsError: the work folder belongs to a run of other settings.
        FolderInUse: another process trains in it.
    """
    with locked_folder(run.work_dir):
        return _train_and_test(run)


def _train_and_test(run: Run) -> dict:
    from clusterplug.checkpoints import CheckpointFitHook
    from clusterplug.cli import build_runner, go_on_from_newest, load_config
    from clusterplug.experiments.progress import seconds_per_step
    from clusterplug.experiments.total_steps import TotalSteps

    folder = Path(run.work_dir)
    settings = claim(run)
    config = load_config(str(run.config), dict(run.options), str(folder))
    go_on_from_newest(config)
    # mmengine keeps one visualizer of a name in a process, which would write into the folder of the first run
    if config.get('visualizer'):
        config.visualizer.name = str(folder)
    begin = time.time()
    runner = build_runner(config)
    runner.register_hook(CheckpointFitHook(partial=not config.get('resume')))
    runner.register_hook(TotalSteps(folder))
    runner.train()
    metrics = {key: float(value) for key, value in runner.test().items()}
    result = dict(metrics=metrics, seconds_per_step=seconds_per_step(folder), minutes=(time.time() - begin) / 60)
    write_json(folder / 'result.json', dict(result, settings=settings))
    return result


def claim(run: Run) -> dict:
    """Note the settings in the work folder, so that other settings do not go on from its checkpoints.

    Returns:
        The settings.

    Raises:
        FileExistsError: the folder holds checkpoints of other settings, which are named.
    """
    folder, settings = Path(run.work_dir), run.settings()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'run.json'
    if file.is_file():
        changed = _difference(read_marker(file) or {}, settings)
        if changed and ((folder / 'last_checkpoint').is_file() or any(folder.glob('*.pth'))):
            raise FileExistsError(
                f'{folder} holds a training of other settings ({changed}); remove it or choose another folder'
            )
    write_json(file, settings)
    return settings


def _difference(found: dict, wanted: dict) -> str:
    """What differs, in one line; a config is its content, wherever it is and however its path is written."""
    versions = difference(found.get('versions') or {}, wanted['versions'])
    if found.get('content') is not None and wanted['content'] is not None:
        changed = _changes(found['content'], wanted['content'])
    elif found.get('content') is None and wanted['content'] is None:
        if found.get('config') != wanted['config']:
            return f'config {found.get("config")}, now {wanted["config"]}'
        changed = _changes(found.get('options') or {}, wanted['options'])
    else:
        changed = 'made before the content of the config was noted, or the config is gone'
    return '; '.join(filter(None, [changed, versions]))


def _changes(before: dict, now: dict) -> str:
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = [f'{key}: {before.get(key)!s:.60}, now {now.get(key)!s:.60}' for key in keys[:5]]
    return ', '.join(shown) + (f' and {len(keys) - 5} more' if len(keys) > 5 else '')


def main() -> int:
    """What a child process does with the run that :func:`claim` noted in the folder of its argument.

    Its parent holds the lock of the folder.
    """
    folder = Path(sys.argv[1])
    noted = json.loads((folder / 'run.json').read_text(encoding='utf-8'))
    _train_and_test(Run(noted['config'], noted['options'], folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
