# SPDX-License-Identifier: Apache-2.0
"""Measurements that were finished, in one file that goes from machine to machine."""

import datetime
import hashlib
import json
import statistics
from pathlib import Path

from clusterplug.core.files import write_json


class Ledger:
    """Finished measurements, of one machine and one version of the code each: of pairs of trainings, or of single ones.

    All of a table take hours: they are noted one by one as they are finished, and what is noted is not measured again,
    on this machine or another. What makes a measurement is its key with the content of its configs, wherever the data
    lies; one of another content is another one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.pairs = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else []

    def find(self, key: dict) -> dict | None:
        """The pair of this city, setting, seed and content, or whatever the key names, if it is there."""
        return next((pair for pair in self.pairs if all(pair.get(name) == key[name] for name in key)), None)

    def add(self, key: dict, without: dict, found: dict, agreement: dict, machine: str, code: str) -> dict:
        """Note a pair and write the file."""
        return self.note(key, without=without, found=found, agreement=agreement, machine=machine, code=code)

    def note(self, key: dict, **values) -> dict:
        """Note what was measured and write the file."""
        pair = dict(**key, **values, date=f'{datetime.date.today():%Y-%m-%d}')
        self.pairs.append(pair)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.pairs)
        return pair


def content_key(*runs) -> str:
    """What both trainings compute, without the folder of their data."""
    from clusterplug.experiments.identity import content_of

    parts = []
    for run in runs:
        content = content_of(str(run.config), dict(run.options))
        parts.append({name: text for name, text in content.items() if not name.endswith('data_root')})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def content_key_of(*configs) -> str:
    """What trainings compute by their merged configs, without the folders of data and results: files by their names."""
    parts = [_portable(config.to_dict()) for config in configs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _portable(value):
    if isinstance(value, dict):
        left_out = ('work_dir', 'visualizer', 'load_from', 'log_level', 'data_root')
        return {str(name): _portable(each) for name, each in value.items() if name not in left_out}
    if isinstance(value, (list, tuple)):
        return [_portable(each) for each in value]
    return Path(value).name if isinstance(value, str) and '/' in value else value


def interval(differences: list[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences; infinite for one pair."""
    from scipy import stats

    if len(differences) < 2:
        return float('-inf'), float('inf')
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    return mean - half, mean + half


def gain_table(pairs: list[dict]) -> list[str]:
    """Mean of every metric without and with the loss in percent, and the paired difference with its interval."""
    lines = ['| | without | with | difference | 95 % interval |', '|---|---|---|---|---|']
    for metric in pairs[0]['without']:
        without, found = ([100 * pair[side][metric] for pair in pairs] for side in ('without', 'found'))
        differences = [b - a for a, b in zip(without, found, strict=True)]
        low, high = interval(differences)
        lines.append(
            f'| {metric} | {statistics.mean(without):.1f} | {statistics.mean(found):.1f} '
            f'| {statistics.mean(differences):+.1f} | {low:+.1f} to {high:+.1f} |'
        )
    return lines
