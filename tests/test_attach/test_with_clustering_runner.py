# SPDX-License-Identifier: Apache-2.0
"""WithClustering around mmdet3d's MinkUNet in a real Runner: predictions, taps, resume, EMA, two ranks."""

import copy
import functools

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.testing import build_tiny_runner, run_gloo, write_tiny_semantickitti

LOSS = dict(type='clusterplug.PointClusterLoss', num_clusters=4, embed_dims=8, queue_len=20, momentum=0.9)
EMA = dict(type='EMAHook', momentum=0.1)


def wrap(model, **options):
    """What a config of three lines does."""
    return dict(type='clusterplug.WithClustering', model=model, loss=copy.deepcopy(LOSS), **options)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_points=1500)


class _Losses:
    """Keeps every logged loss of every iteration; made a hook where mmengine is loaded."""

    def __init__(self, runner):
        from mmengine.hooks import Hook

        self.steps = steps = []

        class Keep(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                steps.append({name: value.item() for name, value in outputs.items() if 'loss' in name})

        runner.register_hook(Keep())


def _train(work_dir, data, **options):
    runner = build_tiny_runner(work_dir, data, **{'wrap': wrap, **options})
    losses = _Losses(runner)
    runner.train()
    return runner, losses.steps


def _assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def _checkpoint(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_plain_and_wrapped_model_predict_the_same_bits(data, tmp_path):
    plain = build_tiny_runner(tmp_path / 'plain', data)
    plain._init_model_weights()
    wrapped = build_tiny_runner(tmp_path / 'wrapped', data, wrap=wrap)
    wrapped._init_model_weights()
    expected = plain.model.state_dict()
    state = wrapped.model.state_dict()
    assert [name for name in state if not name.startswith('clustering.')] == list(expected)
    for name in expected:  # from the same seed
        assert torch.equal(state[name], expected[name]), name
    assert type(wrapped.model) is type(plain.model)
    loader = plain.build_dataloader(plain.cfg.test_dataloader)
    for batch in loader:
        one, other = (runner.model.eval().test_step(copy.deepcopy(batch)) for runner in (plain, wrapped))
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.pred_pts_seg.pts_semantic_mask, b.pred_pts_seg.pts_semantic_mask)
            assert torch.equal(a.pts_seg_logits.pts_seg_logits, b.pts_seg_logits.pts_seg_logits)
        taps = wrapped.model.clustering.embedding, wrapped.model.clustering.predictions
        assert all(tap.value is None and not tap.open for tap in taps)


def test_positions_inside_a_stride_from_training_to_prediction(data, tmp_path):
    """The regression sees the coordinates of the coarse voxels, and so does the prediction of subclasses."""
    from clusterplug.attach import predict_subclasses

    def with_positions(model):
        wrapped = wrap(model, embedding='backbone.encoder.1')
        wrapped['loss'].update(assigner=dict(position_period=2), regions='cell')
        return wrapped

    runner, seen = build_tiny_runner(tmp_path, data, wrap=with_positions), {}
    tap, loss = runner.model.get_submodule('backbone.encoder.1'), runner.model.clustering.loss
    tap.register_forward_hook(lambda _, inputs, output: seen.update(tap=output))
    loss.register_forward_pre_hook(lambda _, inputs: seen.update(cells=inputs[5], labels=inputs[1], regions=inputs[4]))
    runner.train()
    assert loss.positions.moments.any()
    assert seen['regions'].shape == seen['labels'].shape
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    runner.model.train()(**runner.model.data_preprocessor(batch, training=True), mode='loss')
    assert torch.equal(seen['cells'], seen['tap'].indices[:, 1:].long())
    (scan,) = predict_subclasses(runner.model, next(iter(runner.build_dataloader(runner.cfg.val_dataloader))))
    assert scan.cells.shape == (len(scan.points), 3)
    known = scan.features.isfinite().all(1)
    table = {tuple(cell): row for row, cell in enumerate(seen['tap'].indices[:, 1:].tolist())}
    rows = torch.tensor([table[tuple(cell)] for cell in scan.cells[known].tolist()])
    assert torch.equal(scan.features[known], seen['tap'].features[rows])


@pytest.mark.parametrize(('embedding', 'stride'), [('backbone.encoder.0', 2), ('backbone.encoder.1', 4)])
def test_sparse_tap_gives_each_voxel_the_feature_of_its_cell(data, tmp_path, embedding, stride):
    runner = build_tiny_runner(tmp_path, data, wrap=functools.partial(wrap, embedding=embedding))
    model, seen = runner.model.train(), {}

    def keep_tap(_, inputs, output):
        seen['tap'] = output

    def keep_loss(_, inputs, output):
        seen['loss'] = inputs

    model.get_submodule(embedding).register_forward_hook(keep_tap)
    model.clustering.loss.register_forward_hook(keep_loss)
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    processed = model.data_preprocessor(batch, training=True)
    model(**processed, mode='loss')
    features, labels, predictions, rows = seen['loss']
    table = {tuple(cell): i for i, cell in enumerate(seen['tap'].indices.tolist())}
    coords = processed['inputs']['voxels']['coors'].tolist()
    voxel_labels = torch.cat([sample.gt_pts_seg.voxel_semantic_mask for sample in processed['data_samples']])
    assert len(coords) == len(labels) == len(predictions) == len(rows) > len(features)
    found = 0
    for i, (b, x, y, z) in enumerate(coords):
        row = table.get((b, x // stride, y // stride, z // stride))
        if row is None:
            assert labels[i] == 19
        else:
            found += 1
            assert rows[i] == row
            assert labels[i] == voxel_labels[i]
    assert found > 0.7 * len(coords)  # spconv drops the last cell of an axis where the stride does not divide it


def test_training_logs_the_terms_and_learns_subclasses(data, tmp_path):
    runner, steps = _train(tmp_path, data)
    assert len(steps) == 4
    for losses in steps:
        assert {'loss_cluster_queue', 'loss_cluster_point', 'loss_cluster_center'} < set(losses)
    assert steps[-1]['loss_cluster_center'] > 0
    memory = runner.model.clustering.loss.memory
    # car, road, sidewalk, building, vegetation and pole are there, the other 13 classes are not
    assert (memory.num_seeded > 0).nonzero().flatten().tolist() == [0, 8, 10, 12, 14, 17]
    assert memory.step == 4
    saved = _checkpoint(tmp_path / 'epoch_2.pth')['state_dict']
    assert torch.equal(saved['clustering.loss.memory.num_seeded'], memory.num_seeded)


@pytest.mark.parametrize('hooks', [(), pytest.param((EMA,), marks=pytest.mark.slow)])
def test_stop_and_resume_equals_an_uninterrupted_run_bit_for_bit(data, tmp_path, hooks):
    _, straight = _train(tmp_path / 'straight', data, max_epochs=3, hooks=hooks)
    _, first = _train(tmp_path / 'stopped', data, max_epochs=2, hooks=hooks)
    resumed_runner, second = _train(tmp_path / 'stopped', data, max_epochs=3, hooks=hooks, resume=True)
    assert len(second) == 2
    assert resumed_runner.model.clustering.loss.memory.step == 6
    assert first + second == straight
    one, other = (_checkpoint(tmp_path / name / 'epoch_3.pth') for name in ('straight', 'stopped'))
    _assert_same(one['state_dict'], other['state_dict'])
    assert ('ema_state_dict' in one) == bool(hooks)
    if hooks:
        _assert_same(one['ema_state_dict'], other['ema_state_dict'])
    for a, b in zip(one['optimizer']['state'].values(), other['optimizer']['state'].values(), strict=True):
        _assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema_hook_leaves_the_memory_of_the_model_in_training(data, tmp_path, update_buffers):
    _, expected = _train(tmp_path / 'plain', data, max_epochs=3)
    ema = dict(EMA, update_buffers=update_buffers)
    runner, steps = _train(tmp_path / 'ema', data, max_epochs=3, hooks=[ema], train_cfg__val_interval=1)
    assert steps == expected
    averaged = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    memory, copied = runner.model.clustering.loss.memory, averaged.clustering.loss.memory
    assert copied.center_store.data_ptr() != memory.center_store.data_ptr()
    if not update_buffers:
        _assert_same(copied.state_dict(), memory.state_dict())


def _train_on_ranks(rank, size, data, work_dir):
    runner, steps = _train(
        work_dir, data, launcher='pytorch', train_dataloader__batch_size=1, sync_buffers=True,
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', find_unused_parameters=False),
        hooks=[dict(type='SyncBuffersHook')], max_epochs=2,
    )  # fmt: skip
    assert type(runner.model).__name__ == 'MMDistributedDataParallel'
    state = {name: value for name, value in runner.model.module.state_dict().items() if 'num_batches' not in name}
    return state, steps


@pytest.mark.slow
@pytest.mark.parametrize('size', [2, 3])
def test_ddp_training_keeps_ranks_equal(data, tmp_path, size):
    results = run_gloo(_train_on_ranks, size, data, tmp_path, timeout=400)
    state, steps = results[0]
    assert all(len(other) == len(steps) for _, other in results)
    assert steps[-1]['loss_cluster_center'] > 0
    for other, _ in results[1:]:
        memory = {name: value for name, value in state.items() if '.memory.' in name}
        assert len(memory) == 6
        for name, value in memory.items():
            assert torch.equal(other[name], value), name
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.slow
def test_type_in_a_config_needs_no_custom_imports(data, tmp_path):
    import subprocess
    import sys

    code = f"""
import torch
from clusterplug.testing import tiny_config, tiny_model
from mmengine.registry import MODELS, DefaultScope
DefaultScope.get_instance('test', scope_name='mmdet3d')
model = MODELS.build(dict(type='clusterplug.WithClustering', model=tiny_model(), loss={LOSS!r}))
assert type(model).__name__ == 'MinkUNet' and model.clustering.loss.num_classes == 19
assert model.clustering.loss.in_channels == 8
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
