# SPDX-License-Identifier: Apache-2.0
"""FEC as an ONNX file: the same numbers, and no scatter in it."""

import numpy as np
import pytest
import torch

from clusterplug.backbones import FEC

onnx = pytest.importorskip('onnx', reason='needs onnx and onnxscript: pip install onnx onnxscript onnxruntime')
runtime = pytest.importorskip('onnxruntime', reason='needs onnxruntime: pip install onnxruntime')
pytest.importorskip('onnxscript', reason='needs onnxscript: pip install onnxscript')


@pytest.mark.slow
@pytest.mark.parametrize(('options', 'size'), [(dict(num_classes=10), (64, 64)), (dict(task='detection'), (50, 72))])
def test_onnx(tmp_path, options, size):
    torch.manual_seed(0)
    model = FEC(dict(type='small', blocks=(1, 1, 1, 1), layer_scale=0.5), **options).eval()
    x = torch.randn(2, 3, *size)
    path = tmp_path / 'fec.onnx'
    torch.onnx.export(model, (x,), path, dynamo=True)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert not any('Scatter' in name for name in operators), operators
    session = runtime.InferenceSession(path)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model(x)
    for ours, theirs in zip(found, [expected] if torch.is_tensor(expected) else expected):
        # a pixel between two centers may fall to the other one by rounding
        assert np.mean(np.abs(ours - theirs.numpy()) > 1e-3) < 0.01
