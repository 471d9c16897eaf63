# SPDX-License-Identifier: Apache-2.0
"""Names in the scope clusterplug: found without custom_imports, and an error that says so when they do not exist."""

import subprocess
import sys
import textwrap

import pytest

REGISTERED = ('PointClusterLoss', 'ProjectionHead', 'SubclassMemory', 'WithClustering')


def _python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True)


def test_scope_is_found_in_a_fresh_process_without_custom_imports():
    done = _python(f"""
        import sys
        from mmengine.registry import MODELS
        for name in {REGISTERED}:
            assert 'clusterplug' not in sys.modules or name != 'PointClusterLoss'
            found = MODELS.get('clusterplug.' + name)
            assert found is not None and found.__name__ == name, name
            assert found.__module__.startswith('clusterplug.'), found
        loss = MODELS.build(dict(type='clusterplug.PointClusterLoss', num_classes=2, in_channels=4, num_clusters=2))
        assert type(loss).__name__ == 'PointClusterLoss'
        assert 'mmdet3d' not in sys.modules, 'a loss needs no host'
        """)
    assert done.returncode == 0, done.stderr


def test_unknown_name():
    from mmengine.registry import MODELS

    with pytest.raises(KeyError, match=r'clusterplug\.PointClusterLos'):
        MODELS.build(dict(type='clusterplug.PointClusterLos'))


def test_nothing_leaks_into_the_parent_registry():
    from mmengine.registry import MODELS

    import clusterplug.losses  # noqa: F401

    assert MODELS.get('PointClusterLoss') is None


@pytest.mark.slow
def test_without_mmengine_the_loss_is_a_plain_module():
    done = _python("""
        import sys
        sys.modules['mmengine'] = None  # an import of it fails
        import torch
        from clusterplug.losses import PointClusterLoss
        from clusterplug.registry import MODELS
        loss = PointClusterLoss(2, in_channels=4, num_clusters=2)
        sum(loss(torch.randn(9, 4), torch.arange(9) % 2).values()).backward()
        try:
            MODELS.build(dict(type='X'))
        except ModuleNotFoundError as error:
            assert 'pip install' in str(error), error
        else:
            raise SystemExit('no error')
        """)
    assert done.returncode == 0, done.stderr
