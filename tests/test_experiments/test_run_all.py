# SPDX-License-Identifier: Apache-2.0
"""Several trainings at once: order, progress, failure, and going on. The child here is a small script."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clusterplug.core.outputs import locked_folder
from clusterplug.experiments import Run, RunFailed, progress, result_of, run_all, seconds_per_step, side_by_side
from clusterplug.experiments.run import claim

CHILD = textwrap.dedent("""
    import json, os, sys, time
    from pathlib import Path
    folder = Path(sys.argv[1])
    noted = json.loads((folder / 'run.json').read_text())
    (folder / 'starts').open('a').write('x')
    print('threads', os.environ['OMP_NUM_THREADS'], flush=True)
    time.sleep(noted['options'].get('seconds', 0))
    if noted['options'].get('fails'):
        sys.exit('the card caught fire')
    result = dict(metrics=dict(miou=noted['options']['seed']), seconds_per_step=1.0, minutes=0.0, settings=noted)
    (folder / 'result.json').write_text(json.dumps(result))
""")


@pytest.fixture(autouse=True)
def small_child(monkeypatch, request):
    if 'outlives' in request.node.name:
        return

    def start(run, threads):
        with open(run.work_dir / 'console.log', 'ab') as log:
            return subprocess.Popen(
                [sys.executable, '-c', CHILD, str(run.work_dir)],
                stdout=log, stderr=subprocess.STDOUT, env={'OMP_NUM_THREADS': str(threads)},
            )  # fmt: skip

    monkeypatch.setattr(side_by_side, '_start', start)


def _runs(tmp_path, **options):
    return {f'run {seed}': Run('c.py', dict(seed=seed, **options), tmp_path / str(seed)) for seed in range(3)}


def test_all_results_and_a_second_start(tmp_path):
    runs, said = _runs(tmp_path), []
    results = run_all(runs, jobs=2, threads=3, say=said.append)
    assert {name: result['metrics']['miou'] for name, result in results.items()} == {'run 0': 0, 'run 1': 1, 'run 2': 2}
    assert (tmp_path / '0' / 'console.log').read_text() == 'threads 3\n'
    again = run_all(runs, jobs=2, say=said.append)
    assert again == results
    assert all((tmp_path / str(seed) / 'starts').read_text() == 'x' for seed in range(3))
    assert sum('done before' in line for line in said) == 3


def test_other_settings_run_again(tmp_path):
    run_all(_runs(tmp_path), say=lambda _: None)
    changed = {name: run._replace(options={**run.options, 'more': 1}) for name, run in _runs(tmp_path).items()}
    assert all(result_of(run) is None for run in changed.values())
    run_all(changed, say=lambda _: None)
    assert (tmp_path / '0' / 'starts').read_text() == 'xx'


@pytest.mark.parametrize('jobs', [1, 3])
def test_as_many_at_a_time_as_wished(tmp_path, jobs):
    said = []
    run_all(_runs(tmp_path, seconds=0.5), jobs=jobs, say=said.append)
    first_end = next(number for number, line in enumerate(said) if 'done in' in line)
    assert sum('started' in line for line in said[:first_end]) == jobs


def test_a_failed_run_stops_the_others_and_is_named(tmp_path):
    runs = _runs(tmp_path, seconds=20)
    runs['bad'] = Run('c.py', dict(seed=9, fails=True), tmp_path / 'bad')
    with pytest.raises(RunFailed, match=r'the card caught fire(.|\n)*bad failed with exit code 1'):
        run_all(runs, jobs=4, say=lambda _: None)
    # nobody waited for them
    assert not any((tmp_path / str(seed) / 'result.json').exists() for seed in range(3))


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    run = Run('c.py', {'seed': 1, 'lr': 0.1}, tmp_path)
    claim(run)
    claim(run._replace(options={'seed': 1, 'lr': 0.2}))  # nothing trained yet
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(FileExistsError, match=r'lr: 0.2, now 0.3'):
        claim(run._replace(options={'seed': 1, 'lr': 0.3}))
    with pytest.raises(FileExistsError, match=r'config c.py, now d.py'):
        claim(run._replace(config='d.py'))


def test_bad_numbers_and_shared_folders(tmp_path):
    runs = _runs(tmp_path)
    with pytest.raises(ValueError, match='jobs must be an int of at least 1, got 0'):
        run_all(runs, jobs=0)
    with pytest.raises(ValueError, match='threads must be'):
        run_all(runs, threads=0)
    with pytest.raises(ValueError, match='a work_dir of its own'):
        run_all({'a': runs['run 0'], 'b': runs['run 0']})


def test_progress_of_a_log(tmp_path):
    assert progress(tmp_path) == 'starting'
    lines = [dict(loss=2.0, time=2.0, step=step) for step in (10, 20)]
    log = tmp_path / '2026' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    # the last line is being written
    log.write_text('\n'.join(map(json.dumps, [*lines, dict(miou=0.5, step=3)])) + '\n{"loss": 1.')
    assert progress(tmp_path) == 'step 20, loss 2.00'
    assert seconds_per_step(tmp_path) == 2
    (tmp_path / 'total_steps').write_text('80')
    assert progress(tmp_path) == 'step 20, loss 2.00, 25 %, 2 min left'
    (tmp_path / 'total_steps').write_text('20')
    assert progress(tmp_path).endswith('100 %, testing')


def config_of(folder, text="_base_ = ['base.py']\nlr = 0.01\n", base='model = dict(width=8)\n'):
    folder.mkdir(exist_ok=True)
    (folder / 'base.py').write_text(base)
    (folder / 'method.py').write_text(text)
    return Run(str(folder / 'method.py'), dict(seed=1), folder / 'run')


def test_a_run_is_the_content_of_its_config(tmp_path):
    pytest.importorskip('mmengine')
    run = config_of(tmp_path / 'a')
    run_all({'a': run}, say=lambda _: None)
    assert result_of(run) is not None
    again = run._replace(config=str(tmp_path / 'a' / '..' / 'a' / 'method.py'))
    assert result_of(again) is not None, 'another way to write the path'
    config_of(tmp_path / 'a', text="# a comment\n_base_ = './base.py'\nlr = 1e-2\n")
    assert result_of(run) is not None, 'the same values'
    config_of(tmp_path / 'a', base='model = dict(width=9)\n')  # the base of the config
    assert result_of(run) is None
    (run.work_dir / 'epoch_1.pth').write_bytes(b'')  # without a note of it
    with pytest.raises(FileExistsError, match=r'model\.width: 8, now 9'):
        run_all({'a': run}, say=lambda _: None)
    with pytest.raises(FileExistsError, match=r'model\.width: 8, now 9'):
        claim(run)


def test_other_versions_are_another_run(tmp_path, monkeypatch):
    from clusterplug.experiments import run as module

    run = Run('c.py', dict(seed=1), tmp_path)
    run_all({'a': run}, say=lambda _: None)
    monkeypatch.setattr(module, 'versions', lambda: dict(torch='99.0'))
    assert result_of(run) is None
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(FileExistsError, match=r'torch: .* there, .99\.0. now'):
        claim(run)


def test_a_damaged_result_is_made_again(tmp_path):
    runs = _runs(tmp_path)
    run_all(runs, say=lambda _: None)
    (tmp_path / '1' / 'result.json').write_text('{"metr')
    results = run_all(runs, say=lambda _: None)
    assert results['run 1']['metrics'] == dict(miou=1)
    assert (tmp_path / '1' / 'starts').read_text() == 'xx'


def test_results_come_one_by_one_and_an_error_stops_the_rest(tmp_path):
    seen = []

    def finished(name, result):
        seen.append(name)
        if len(seen) == 2:
            raise ValueError('no such metric')

    with pytest.raises(ValueError, match='no such metric'):
        run_all(_runs(tmp_path), say=lambda _: None, finished=finished)
    assert seen == ['run 0', 'run 1']
    assert not (tmp_path / '2' / 'starts').exists()


def test_a_second_start_in_the_same_folder_is_refused(tmp_path):
    runs = _runs(tmp_path)
    with locked_folder(tmp_path / '1'):
        script = (
            'from pathlib import Path; from clusterplug.experiments import Run, run_all\n'
            f'run_all({{"a": Run("c.py", {{}}, Path({str(tmp_path / "1")!r}))}})'
        )
        done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode
    assert 'is being written by another process' in done.stderr
    assert not (tmp_path / '1' / 'run.json').exists()
    assert len(run_all(runs, say=lambda _: None)) == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_no_training_outlives_its_parent(tmp_path, number):
    """The real start of children, whose module is replaced by one that sleeps."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from clusterplug.experiments import Run, run_all, side_by_side
        folder = Path(sys.argv[1])
        sleeper = 'import os, sys, time; open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(60)'
        command, true = [sys.executable, '-c', sleeper, str(folder / 'pid')], side_by_side.subprocess.Popen
        side_by_side.subprocess.Popen = lambda _, **options: true(command, **options)
        run_all({'a': Run('c.py', {}, folder / 'run')})
    """)
    parent = subprocess.Popen([sys.executable, '-c', script, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / 'pid').read_text())
    parent.send_signal(number)
    parent.wait(30)
    while _is_alive(child):
        assert time.monotonic() < deadline, 'the training goes on'
        time.sleep(0.05)


def _is_alive(process):
    try:
        return (Path('/proc') / str(process) / 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_threads_are_those_that_the_user_and_the_scheduler_give(tmp_path, monkeypatch):
    def threads(jobs):
        said = []
        run_all(_runs(tmp_path / str(time.monotonic_ns())), jobs=jobs, say=said.append)
        return int(next(line for line in said if 'started' in line).partition(' on ')[2].split()[0])

    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    assert threads(2) == 5
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(side_by_side, 'available_cpus', lambda: 6)
    assert (threads(1), threads(3)) == (6, 2)
