# SPDX-License-Identifier: Apache-2.0
"""mmpretrain beside a transformers that its text models do not know."""

import subprocess
import sys
from types import ModuleType

import pytest

from clusterplug.compat.mmpretrain import mmpretrain_multimodal

MODULE = 'transformers.modeling_utils'


def dependency(on=True):
    module = ModuleType('mmpretrain.utils.dependency')
    module.WITH_MULTIMODAL = on
    return module


@pytest.mark.parametrize(('known', 'on', 'changes'), [(True, True, False), (False, True, True), (False, False, False)])
def test_switched_off_only_where_it_cannot_be_imported(monkeypatch, known, on, changes):
    utils = ModuleType(MODULE)
    if known:
        utils.apply_chunking_to_forward = lambda: None
    monkeypatch.setitem(sys.modules, 'transformers', ModuleType('transformers'))
    monkeypatch.setitem(sys.modules, MODULE, utils)
    module = dependency(on)
    assert mmpretrain_multimodal.patch(module) == ([(module, 'WITH_MULTIMODAL', False)] if changes else [])


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    assert mmpretrain_multimodal.patch(dependency())


def test_models_can_be_imported():
    pytest.importorskip('mmpretrain', reason='needs mmpretrain: pip install mmpretrain')
    code = 'from clusterplug import compat; compat.apply_all(); from mmpretrain.models import ImageClassifier'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
