# SPDX-License-Identifier: Apache-2.0
"""The doctor against installations that lack something, have too new a version, or break on import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterplug.__main__ import main
from clusterplug.dependencies import DEPENDENCIES
from clusterplug.doctor import PARTS, examine
from clusterplug.doctor.packages import PINNED, library_hint
from clusterplug.doctor.report import as_json, as_text
from clusterplug.doctor.runner import ProbeResult, run_probes

ROOT = Path(__file__).resolve().parents[2]
GOOD = {d.package: PINNED.get(d.package, '') or d.allowed.split('=')[-1].split(',')[0] for d in DEPENDENCIES}
CPU = {
    'threads': 2, 'cuda': False, 'cuda_of_torch': '13.0', 'names': [], 'spconv_cuda': False, 'mmcv_cuda': False,
}  # fmt: skip


def simulate(versions=None, without=(), **broken):
    """Findings on a machine with the given versions; keywords name probes that fail, with their errors."""
    have = {name: version for name, version in {**GOOD, **(versions or {})}.items() if name not in without}

    def probe(names):
        answers = {name: ProbeResult(True) for name in names}
        answers['devices'] = ProbeResult(True, value=broken.pop('devices', CPU))
        answers.update({name: ProbeResult(False, error) for name, error in broken.items() if name in answers})
        for name, error in list(broken.items()):
            if f'import {name}' in answers:
                answers[f'import {name}'] = ProbeResult(False, error)
        return answers

    return examine(have.get, probe)


def states(findings):
    return {part.name: part.state for part in findings.parts}


def test_a_good_installation_has_no_problems():
    findings = simulate()
    assert findings.ok
    assert set(states(findings).values()) == {'works'}
    assert 'No problems found.' in as_text(findings)


def test_torch_is_imported_before_everything_else():
    order = []

    def probe(names):
        order.extend(names)
        return {name: ProbeResult(True) for name in names} | {'devices': ProbeResult(True, value=CPU)}

    examine(GOOD.get, probe)
    assert order.index('import torch') < order.index('import decord')
    assert order[0] == 'import torch'


def test_a_missing_core_package_is_a_problem():
    findings = simulate(without=['torch'])
    assert [(p.what, p.fix) for p in findings.problems] == [('torch is not installed', 'pip install torch==2.11.0')]


def test_missing_hosts_are_no_problem_but_their_parts_are_named():
    findings = simulate(without=['mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'spconv', 'open3d', 'mkdocs', 'scipy'])
    assert findings.ok
    missing = {
        'mm registry (type="clusterplug.X")', 'mmdet3d hosts', 'LiDAR city', 'documentation', 'estimators',
        'text-video retrieval (CenterCLIP)',
    }  # fmt: skip
    assert {name for name, state in states(findings).items() if state == 'not installed'} == missing
    assert states(findings)['pure-torch kernels'] == 'works'
    (city,) = (part for part in findings.parts if part.name == 'LiDAR city')
    assert city.detail == 'open3d missing: pip install open3d==0.19.0'


@pytest.mark.parametrize(
    ('package', 'version', 'says', 'fix'),
    [
        ('mmcv', '2.2.0', 'mmcv 2.2.0 is outside >=2.0.0,<2.2', 'pip install --no-build-isolation mmcv==2.1.0'),
        ('torch', '2.0.1', 'torch 2.0.1 is outside >=2.4', 'pip install torch==2.11.0'),
        ('numpy', '2.4.0', 'numpy 2.4.0 is outside <2.4', 'pip install numpy==2.3.5'),
        ('setuptools', '84.0.0', 'setuptools 84.0.0 is outside <82', 'pip install setuptools==78.1.1'),
        ('mkdocs', '2.0', 'mkdocs 2.0 is outside >=1.6,<2', "pip install 'mkdocs>=1.6,<2'"),
    ],
)
def test_out_of_range(package, version, says, fix):
    findings = simulate({package: version})
    (problem,) = findings.problems
    assert problem.what.startswith(says)
    assert fix in problem.fix
    assert 'OUT OF RANGE' in as_text(findings)


def test_a_bound_of_mmdet3d_does_not_bind_those_who_lack_it():
    assert simulate({'numpy': '2.4.0', 'setuptools': '84.0.0'}, without=['mmdet3d', 'mmengine']).ok


def test_onedl_mmengine_counts_as_mmengine():
    findings = simulate({'onedl-mmengine': '0.10.12'}, without=['mmengine'])
    assert findings.ok
    assert states(findings)['mmdet3d hosts'] == 'works'
    assert 'onedl-mmengine' in as_text(findings)


def test_a_host_that_does_not_import_is_one_problem_with_its_command():
    findings = simulate(mmcv='ImportError: undefined symbol', hosts='ImportError: undefined symbol')
    (problem,) = findings.problems
    assert problem.what == 'mmcv does not import: ImportError: undefined symbol'
    assert 'mmcv==2.1.0' in problem.fix
    assert states(findings)['mmdet3d hosts'] == 'broken'


def test_a_missing_library_of_the_system_gets_its_apt_line():
    error = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
    (problem,) = simulate(open3d=error).problems
    assert problem.fix == 'sudo apt install libgl1'
    assert library_hint('ImportError: libnothing.so.1: cannot open shared object file') == ''


def test_a_broken_part_is_a_problem():
    findings = simulate(kernels='RuntimeError: wrong marginals')
    assert not findings.ok
    assert states(findings)['pure-torch kernels'] == 'broken'


def test_a_cpu_build_of_spconv_beside_a_gpu():
    gpu = {**CPU, 'cuda': True, 'names': ['GPU of the test']}
    (problem,) = simulate(devices=gpu).problems
    assert 'GPU of the test' in problem.what
    assert 'spconv-cu126==2.3.8' in problem.fix
    assert simulate(devices={**gpu, 'spconv_cuda': True}).ok


def test_json_holds_everything():
    found = json.loads(as_json(simulate({'mmcv': '2.2.0'})))
    assert found['ok'] is False
    assert [part['name'] for part in found['parts']] == list(PARTS)
    assert {'package', 'version'} <= {'package', *found['packages'][0]}
    assert found['devices']['threads'] == 2


def test_a_crash_is_reported_and_the_other_probes_go_on(tmp_path, monkeypatch):
    (tmp_path / 'crashes.py').write_text('import os; os.abort()')
    (tmp_path / 'fails.py').write_text('raise OSError("no such thing")')
    (tmp_path / 'leaves.py').write_text('raise SystemExit(3)')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)]))
    results = run_probes(['import json', 'import crashes', 'import fails', 'import leaves', 'import csv'])
    assert [name for name, result in results.items() if result.ok] == ['import json', 'import csv']
    assert 'ended with code' in results['import crashes'].error
    assert results['import fails'].error == 'OSError: no such thing'
    assert results['import leaves'].error == 'SystemExit: 3'


def test_a_probe_that_hangs_is_ended(tmp_path, monkeypatch):
    (tmp_path / 'hangs.py').write_text('import time; time.sleep(100)')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert run_probes(['import hangs'], patience=4)['import hangs'].error == 'no answer within 4 s'


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    assert 'doctor' in capsys.readouterr().out


@pytest.mark.slow
def test_for_real_with_a_package_out_of_range(tmp_path):
    """A stranger's environment: mmcv 2.2.0 comes first on the path."""
    info = tmp_path / 'mmcv-2.2.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmcv\nVersion: 2.2.0\n')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, '-m', 'clusterplug', 'doctor', '--json']
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    found = json.loads(result.stdout)
    assert result.returncode == 1
    assert any(problem['what'].startswith('mmcv 2.2.0 is outside') for problem in found['problems'])
    assert next(package for package in found['packages'] if package['found'] == 'torch')['imports'] is True
