"""One training and its test, with the result in a file: ``python -m clusterplug.experiments.run WORK_DIR``."""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.files import write_json


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
        """What the result depends on, as JSON gives it back."""
        return json.loads(json.dumps(dict(config=str(self.config), options=self.options)))


def result_of(run: Run) -> dict | None:
    """The result of a run that was finished with these settings, None if there is none.

    Returns:
        ``metrics``: what the test's evaluators gave, by name without prefix; ``seconds_per_step`` in training, median;
        ``minutes`` of the last start.
    """
    file = Path(run.work_dir) / 'result.json'
    if not file.is_file():
        return None
    result = json.loads(file.read_text())
    return result if result.pop('settings', None) == run.settings() else None


def train_and_test(run: Run) -> dict:
    """Train the run's model, from its last checkpoint if there is one, test it, and write ``result.json``.

    A work folder that holds checkpoints of other settings is refused.

    Returns:
        As :func:`result_of`.

    Raises:
        FileExistsError: the work folder belongs to a run of other settings.
    """
    from clusterplug.cli import build_runner, load_config
    from clusterplug.experiments.progress import seconds_per_step
    from clusterplug.experiments.total_steps import TotalSteps

    folder = Path(run.work_dir)
    claim(run)
    config = load_config(str(run.config), dict(run.options), str(folder))
    config.resume = (folder / 'last_checkpoint').is_file()
    # mmengine keeps one visualiser of a name in a process, which would write into the folder of the first run
    if config.get('visualizer'):
        config.visualizer.name = str(folder)
    begin = time.time()
    runner = build_runner(config)
    runner.register_hook(TotalSteps(folder))
    runner.train()
    metrics = {key: float(value) for key, value in runner.test().items()}
    result = dict(metrics=metrics, seconds_per_step=seconds_per_step(folder), minutes=(time.time() - begin) / 60)
    write_json(folder / 'result.json', dict(result, settings=run.settings()))
    return result


def claim(run: Run) -> None:
    """Note the settings in the work folder, so that other settings do not go on from its checkpoints."""
    folder = Path(run.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'run.json'
    if file.is_file():
        found = json.loads(file.read_text())
        if found != run.settings() and (folder / 'last_checkpoint').is_file():
            raise FileExistsError(
                f'{folder} holds a training of other settings ({_difference(found, run.settings())}); remove it or '
                f'choose another folder'
            )
    write_json(file, run.settings())


def _difference(found: dict, wanted: dict) -> str:
    if found.get('config') != wanted['config']:
        return f'config {found.get("config")}, now {wanted["config"]}'
    before, now = found.get('options', {}), wanted['options']
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return ', '.join(f'{key}: {before.get(key)}, now {now.get(key)}' for key in keys)


def main() -> int:
    """What a child process does with the run that :func:`claim` noted in the folder of its argument."""
    folder = Path(sys.argv[1])
    noted = json.loads((folder / 'run.json').read_text())
    train_and_test(Run(noted['config'], noted['options'], folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
