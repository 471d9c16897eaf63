# SPDX-License-Identifier: Apache-2.0
"""Runs a command with one line of progress, a log file, and an end that leaves no process behind."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


class CommandFailed(Exception):
    """A command ended with an error; its last lines and the place of the whole log are in the message."""

    def __init__(self, command: list[str], code: int, log: Path, output: list[str]):
        self.output = '\n'.join(output)
        tail = '\n'.join('    ' + line for line in output[-25:])
        super().__init__(f'{" ".join(command[:6])} ... ended with code {code}:\n{tail}\nThe whole output is in {log}')


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def describe(line: str) -> str | None:
    """What a line of pip's or ninja's output says about the progress, in few words."""
    if match := re.match(r'\s*\[(\d+)/(\d+)\]', line):
        return f'compiled {int(match[1]) - 1} of {match[2]} files'
    if match := re.match(r'\s*(?:Downloading|Using cached|Processing)\s+(\S+)(?:\s+(\(.*\)))?$', line):
        file = re.sub(r'(-(cp|py)\d.*|\.tar\.gz|\.zip)$', '', match[1].rsplit('/', 1)[-1])
        return f'{file} {match[2] or ""}'.rstrip()
    if match := re.match(r'\s*Collecting\s+(\S+)', line):
        return f'looking for {match[1]}'
    if line.startswith('Installing collected packages:'):
        return f'installing {line.count(",") + 1} packages'
    return None


def run(command: list, log: Path, *, expected: float, env: dict | None = None, keep_open: tuple = (), cwd=None) -> None:
    """Run a command quietly, showing the time gone, the time expected and what is being done.

    Args:
        command (list): Program and arguments.
        log (Path): File that gets the whole output.
        expected (float): Expected time in seconds.
        env (dict): Additions to the environment.
        keep_open (tuple): File descriptors that the command inherits.
        cwd (Path): Folder to run in.

    Raises:
        CommandFailed: The command ended with an error.
    """
    command = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    # A session of its own: Ctrl-C reaches this process only, which then ends the command with all its children.
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True, pass_fds=keep_open,
    )  # fmt: skip
    lines = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    try:
        output = _follow(lines, log, expected)
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code:
        raise CommandFailed(command, code, log, output)


def _read(stream, lines):
    for line in stream:
        lines.put(line.rstrip('\n'))
    lines.put(None)


def _follow(lines, log, expected):
    """Write the log and the progress line until the output ends; returns the output."""
    start, shown, status, output = time.monotonic(), 0.0, 'starting', []
    live = sys.stdout.isatty()
    with log.open('w') as file:
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                output.append(line)
                file.write(line + '\n')
                file.flush()
                status = describe(line) or status
            now = time.monotonic()
            if now - shown >= (0.2 if live else 20) and now - start > 1:
                shown = now
                text = f'      {clock(now - start)} of about {clock(expected)}  {status}'[:100]
                print(f'\r{text:<100}' if live else text, end='' if live else '\n', flush=True)
    if live and shown:
        print('\r' + ' ' * 100, end='\r', flush=True)
    return output


def _end(process):
    for number, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    # pip may end before a compiler that it started: the group goes as a whole.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
