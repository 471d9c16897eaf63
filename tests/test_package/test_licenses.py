# SPDX-License-Identifier: Apache-2.0
"""Every file of code names its license in the form that tools read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE = '# SPDX-License-Identifier: Apache-2.0'


def test_every_file_of_code_names_its_license():
    files = [
        path
        for folder in ('clusterplug', 'tools', 'benchmarks', 'tests', 'docs')
        for pattern in ('*.py', '*.sh')
        for path in (ROOT / folder).rglob(pattern)
        if '.mim' not in path.parts
    ]
    assert len(files) > 400
    bare = [str(path.relative_to(ROOT)) for path in files if path.stat().st_size and LINE not in path.read_text()[:300]]
    assert bare == []


def test_license_and_notice_name_the_owner():
    assert 'Copyright 2026 The clusterplug authors' in (ROOT / 'LICENSE').read_text()
    assert 'MMDetection3D' in (ROOT / 'NOTICE').read_text()
