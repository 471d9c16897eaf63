# SPDX-License-Identifier: Apache-2.0
"""CollapseCheckHook: an epoch at ln K is named, one below is not."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from clusterplug.hooks import CollapseCheckHook


def run(hook, losses, k=10):
    runner = SimpleNamespace(epoch=0)
    hook.before_train_epoch(runner)
    for n, loss in enumerate(losses):
        outputs = dict(loss=torch.tensor(loss), loss_swav=torch.tensor(loss), ln_k=torch.tensor(math.log(k)))
        hook.after_train_iter(runner, n, outputs=outputs)
    hook.after_train_epoch(runner)


def test_an_epoch_at_ln_k_is_named():
    with pytest.warns(UserWarning, match=r'within 1% of ln K, its value at collapse, for epoch 1.*epsilon=0\.03'):
        run(CollapseCheckHook(), [math.log(10), 1.005 * math.log(10)])


def test_a_loss_that_moves_is_not():
    hook = CollapseCheckHook()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(hook, [math.log(10), 0.98 * math.log(10)])
        run(hook, [])
        hook.after_train_iter(SimpleNamespace(epoch=0), 0, outputs=dict(loss=torch.tensor(1.0)))
        hook.after_train_epoch(SimpleNamespace(epoch=0))
    with pytest.raises(ValueError, match='tolerance'):
        CollapseCheckHook(0)
