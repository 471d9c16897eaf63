# SPDX-License-Identifier: Apache-2.0
"""The loss in a real Runner on two gloo ranks that see different classes: with everything that large runs use."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.testing import build_tiny_runner, run_gloo, write_tiny_semantickitti

LOSS = dict(type='clusterplug.PointClusterLoss', num_clusters=4, embed_dims=8, queue_len=20, momentum=0.9)
WRAPPER = dict(type='MMDistributedDataParallel', find_unused_parameters=False)
ROAD = 40
STEPS = 4

VARIANTS = {
    'plain': {},
    'accumulation': dict(optim_wrapper__accumulative_counts=2),
    'bfloat16': dict(optim_wrapper__type='AmpOptimWrapper', optim_wrapper__dtype='bfloat16'),
    'ema': dict(hooks=[dict(type='EMAHook', momentum=0.1)]),
    'checkpointing': dict(activation_checkpointing=['backbone.encoder.0', 'backbone.decoder.0.1']),
    'compiled': dict(backend='aot_eager'),
}


def _wrap(model):
    return dict(type='clusterplug.WithClustering', model=model, loss=copy.deepcopy(LOSS))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Four scans, two of which show nothing but road."""
    root = write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_points=800)
    for scan in (1, 3):
        path = root / 'sequences' / '00' / 'labels' / f'{scan:06d}.label'
        labels = np.fromfile(path, np.uint32)
        np.where(labels == ROAD, labels, 0).astype('<u4').tofile(path)
    return root


def _train(rank, size, data, work_dir, backend=None, **options):
    from mmengine.hooks import Hook

    steps = []

    class Keep(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            steps.append({name: value.item() for name, value in outputs.items() if 'loss' in name})

    runner = build_tiny_runner(
        work_dir, data, wrap=_wrap, launcher='pytorch', model_wrapper_cfg=WRAPPER, sync_buffers=True,
        train_dataloader__batch_size=1, max_epochs=2, **options,
    )  # fmt: skip
    runner.register_hook(Keep())
    model = runner.model.module
    if backend is not None:
        model.clustering.loss.compile(backend=backend)
    runner.train()
    state = {name: value for name, value in model.state_dict().items() if 'num_batches' not in name}
    averaged = [hook.ema_model.module.state_dict() for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    return steps, state, averaged[0] if averaged else None


@pytest.fixture(scope='module')
def results(data, tmp_path_factory):
    found = {}

    def of(variant):
        if variant not in found:
            work_dir = tmp_path_factory.mktemp(variant)
            found[variant] = run_gloo(_variant, 2, data, work_dir, variant, timeout=500)
        return found[variant]

    return of


def _variant(rank, size, data, work_dir, variant):
    return _train(rank, size, data, work_dir, **copy.deepcopy(VARIANTS[variant]))


def _memory(state):
    return {name: value for name, value in state.items() if '.memory.' in name}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_ranks_stay_together(results, variant):
    (steps, state, _), (others, other, _) = results(variant)
    assert len(steps) == len(others) == STEPS
    for losses in steps + others:
        assert {'loss_cluster_queue', 'loss_cluster_point', 'loss_cluster_center'} < set(losses)
        assert all(np.isfinite(value) for value in losses.values())
    assert steps[-1]['loss_cluster_center'] > 0
    memory = _memory(state)
    assert int(memory['clustering.loss.memory.step']) == STEPS
    for name, value in memory.items():  # bit for bit
        assert torch.equal(other[name], value), name
    for name, value in state.items():
        if 'running_' in name:  # of each rank's own data, without SyncBuffersHook
            continue
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')


@pytest.mark.slow
@pytest.mark.parametrize(('variant', 'same_steps'), [('ema', STEPS), ('compiled', STEPS), ('checkpointing', STEPS),
                                                     ('accumulation', 1), ('bfloat16', 0)])  # fmt: skip
def test_losses_are_those_of_a_plain_run(results, variant, same_steps):
    """As long as the weights are: accumulation moves them later, bfloat16 rounds."""
    for (steps, *_), (plain, *_) in zip(results(variant), results('plain'), strict=True):
        for losses, wanted in zip(steps[:same_steps], plain[:same_steps], strict=True):
            assert losses == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert steps[0] == pytest.approx(plain[0], rel=0.1, abs=0.05)


@pytest.mark.slow
def test_accumulation_moves_the_weights_every_second_step(results):
    (steps, _, _), _ = results('accumulation')
    (plain, _, _), _ = results('plain')
    assert steps[1] != pytest.approx(plain[1], rel=1e-6)  # the plain run has moved its weights


@pytest.mark.slow
def test_the_average_keeps_the_memory_and_smooths_the_weights(results):
    for _, state, averaged in results('ema'):
        for name, value in _memory(state).items():
            assert torch.equal(averaged[name], value), name
        name = 'clustering.loss.projector.0.weight'
        assert not torch.equal(averaged[name], state[name])
    assert torch.equal(results('ema')[0][2][name], results('ema')[1][2][name])


@pytest.mark.slow
def test_a_tap_inside_a_checkpointed_layer_is_noticed(data, tmp_path):
    """Reentrant checkpointing gives features without gradient there: the loss would train its projector alone."""
    from torch.utils.checkpoint import checkpoint

    runner = build_tiny_runner(
        tmp_path, data, wrap=lambda model: dict(_wrap(model), embedding='backbone.encoder.0.1.conv1')
    )
    layer = runner.model.backbone.encoder[0]
    forward = layer.forward
    layer.forward = lambda x: checkpoint(forward, x, use_reentrant=True)
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    with pytest.raises(ValueError, match=r"'backbone\.encoder\.0\.1\.conv1' gives features without gradient"):
        runner.model.train()(**runner.model.data_preprocessor(batch, training=True), mode='loss')
