# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/token_clustering.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

TEXT = (Path(__file__).resolve().parents[2] / 'docs' / 'token_clustering.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


@torch.no_grad()
@pytest.mark.parametrize(
    'source', [block for block in BLOCKS if 'import' in block], ids=['timm', 'transformers', 'layers']
)
def test_example_runs_and_has_the_shapes_it_names(source):
    found = {}
    exec(source, found)
    for line in source.splitlines():
        shape = re.search(r'#.*?(\(\d[\d, ]*\))', line)
        if shape:
            value = found[line.split('=')[0].split(',')[0].strip()]
            value = value[-1] if isinstance(value, tuple) else value
            assert str(tuple(value.shape)) == shape.group(1), line


def test_configs_of_the_page_build_their_parts():
    registry = pytest.importorskip('mmengine.registry', reason='needs mmengine')
    import clusterplug.registry  # noqa: F401

    (hooks,) = [block for block in BLOCKS if 'custom_hooks' in block]
    found = {}
    exec(hooks, found)
    assert type(registry.HOOKS.build(dict(found['custom_hooks'][0]))).__name__ == 'TokenClusteringHook'
    assert any('TokenClusteringViT' in block for block in BLOCKS)
    assert registry.MODELS.get('clusterplug.TokenClusteringViT') is not None
