# SPDX-License-Identifier: Apache-2.0
"""How far a training is, read from what mmengine logs."""

import json
import statistics
from pathlib import Path


def log_lines(work_dir: Path) -> list[dict]:
    """What mmengine logged in all starts of a run, oldest first; a line that is being written is left out."""
    lines = []
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text(errors='replace').splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return [line for line in lines if isinstance(line, dict)]


def training_lines(work_dir: Path) -> list[dict]:
    """The lines of training steps."""
    return [line for line in log_lines(work_dir) if 'loss' in line and 'time' in line]


def seconds_per_step(work_dir: Path) -> float:
    """Median over the log lines of all starts of a run; NaN before the first."""
    times = [line['time'] for line in training_lines(work_dir)]
    return float(statistics.median(times)) if times else float('nan')


def progress(work_dir: Path) -> str:
    """Step, loss and, where the log tells, minutes left of a training, in a few words."""
    lines = training_lines(work_dir)
    if not lines:
        return 'starting'
    text = f'step {lines[-1]["step"]}, loss {lines[-1]["loss"]:.2f}'
    total = _total_steps(work_dir)
    if not total:
        return text
    left = total - lines[-1]['step']
    recent = statistics.median(line['time'] for line in lines[-5:])
    end = f'{left * recent / 60:.0f} min left' if left else 'testing'
    return f'{text}, {100 * lines[-1]["step"] // total} %, {end}'


def _total_steps(work_dir: Path) -> int:
    file = Path(work_dir) / 'total_steps'
    return int(file.read_text() or 0) if file.is_file() else 0
