# SPDX-License-Identifier: Apache-2.0
"""Patched models traced, exported and converted: the same numbers, for any batch."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')

from clusterplug import patch

_spec = importlib.util.spec_from_file_location('_patch_models', Path(__file__).with_name('_models.py'))
models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models)

SETTINGS = {
    'expedit': dict(method='expedit', start=1, keep_ratio=0.5, size_bias=False),
    'expedit sizes': dict(method='expedit', start=1, end=3, grid=(5, 6), size_bias=True),
    'average': dict(method='average', start=1, keep_ratio=0.5),
    'tome': dict(method='tome', start=1, grid=(5, 6)),
    'tome ratio': dict(method='tome', start=2, keep_ratio=0.2),
    'tome every block': dict(method='tome', every_block=True, keep_ratio=0.5),
}


def patched(setting, name='timm vit'):
    model = patch.apply(models.make(name), **SETTINGS[setting])
    image = models.picture(3)
    with torch.no_grad():
        return model, image, model(image)


@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('setting', SETTINGS)
@pytest.mark.parametrize('name', ['timm vit', 'timm dinov3 rope'])
def test_trace(setting, name):
    model, image, expected = patched(setting, name)
    traced = torch.jit.trace(model, image[:2], check_trace=False)
    torch.testing.assert_close(traced(image[:2]), expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(traced(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('setting', SETTINGS)
def test_export_with_a_batch_of_any_size(setting):
    model, image, expected = patched(setting)
    program = torch.export.export(model, (image[:2],), dynamic_shapes=({0: torch.export.Dim('batch')},), strict=False)
    torch.testing.assert_close(program.module()(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('setting', ['expedit', 'tome', 'tome every block'])
def test_onnx(setting, tmp_path):
    pytest.importorskip('onnxscript', reason='needs onnxscript')
    runtime = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    model, image, expected = patched(setting)
    batch = ({0: torch.export.Dim('batch')},)
    torch.onnx.export(model, (image[:2],), tmp_path / 'm.onnx', dynamo=True, verbose=False, dynamic_shapes=batch)
    session = runtime.InferenceSession(tmp_path / 'm.onnx')
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)
