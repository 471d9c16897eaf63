# SPDX-License-Identifier: Apache-2.0
"""ImageVolumeModel: volumes and videos from files, a real Runner, resume, padding, ranks, what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')
pytest.importorskip('mmcv')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.datasets.transforms import LoadSlices, PackViews, SliceViews, SweepSlices
from clusterplug.layers import InterSliceEncoder
from clusterplug.losses import IntraInterLoss
from clusterplug.pretraining import ImageVolumeModel, MaskedSliceModel, MultiViewPreprocessor
from clusterplug.testing import run_gloo, write_tiny_semantickitti

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'intra_inter'


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def volume(slices=9, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (slices, height, width), dtype=np.uint8)


def tiny(**options):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    head = dict(type='clusterplug.PrototypeHead', in_channels=8)
    parts = dict(
        encoder=InterSliceEncoder(8, 1, 2, downsample=2, dropout=0.0), head=dict(**head, num_prototypes=6),
        volume_head=dict(**head, num_prototypes=2), mask_ratio=0.3,
    )  # fmt: skip
    return ImageVolumeModel(backbone, **{**parts, **options})


def inputs(lengths=(5, 3, 4), views=2, size=8):
    slices = [[randn(n, 3, size, size, seed=10 * v + i) for i, n in enumerate(lengths)] for v in range(views)]
    return MultiViewPreprocessor()(dict(inputs=dict(views=slices)))['inputs']


def test_views_of_slices():
    still = SliceViews(1, 16, 4, augment=False)
    (view,) = still(dict(img=volume()))['views']
    assert view.shape == (4, 3, 16, 16)
    assert view.dtype == torch.uint8
    same = SliceViews(2, 20, flip=0, scale=(1, 1), brightness=0, contrast=0, noise=0)(dict(img=volume(6, 20, 20)))
    assert all(torch.equal(view[:, 0], torch.from_numpy(volume(6, 20, 20))) for view in same['views'])
    flipped = SliceViews(1, 20, flip=1, scale=(1, 1), brightness=0, contrast=0, noise=0)(dict(img=volume(6, 20, 20)))
    assert torch.equal(flipped['views'][0][:, 1], torch.from_numpy(volume(6, 20, 20)).flip(1, 2))  # every slice alike
    torch.manual_seed(3)
    first = SliceViews(2, 12)(dict(img=volume()))['views']
    torch.manual_seed(3)
    again = SliceViews(2, 12)(dict(img=volume()))['views']
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(*first)
    color = np.stack([volume()] * 3, -1)
    color[..., 0] = 0
    assert SliceViews(1, 8, augment=False, channel_order='bgr')(dict(img=color))['views'][0][:, 2].max() == 0
    assert SliceViews(num_slices=20)(dict(img=volume(3)))['views'][0].shape[0] == 3
    for image, error in ((volume()[0], ValueError), (volume().astype(np.float32), TypeError), (volume(0), ValueError)):
        with pytest.raises(error, match='img must be'):
            still(dict(img=image))
    for options in (dict(scale=(0, 1)), dict(num_views=0), dict(noise=-1), dict(num_slices=0), dict(flip=2)):
        with pytest.raises(ValueError, match=next(iter(options))):
            SliceViews(**options)


def test_files_of_volumes(tmp_path):
    x = volume(5, 6, 7)
    np.save(tmp_path / 'a.npy', x)
    path = str(tmp_path / 'a.npy')
    assert np.array_equal(LoadSlices()(dict(img_path=path))['img'], x)
    assert np.array_equal(LoadSlices(axis=2)(dict(img_path=path))['img'], np.moveaxis(x, 2, 0))
    assert np.array_equal(LoadSlices(max_slices=1)(dict(img_path=path))['img'], x[2:3])
    wide = (x.astype(np.float32) - 100) * 10
    np.save(tmp_path / 'b.npy', wide)
    scaled = LoadSlices(window=(-500, 500))(dict(img_path=str(tmp_path / 'b.npy')))['img']
    assert np.array_equal(scaled, ((wide + 500) / 1000).clip(0, 1).__mul__(255).round().astype(np.uint8))
    assert LoadSlices()(dict(img_path=str(tmp_path / 'b.npy')))['img'].max() == 255
    wide[0, 0, 0] = np.nan
    np.save(tmp_path / 'c.npy', wide)
    np.save(tmp_path / 'd.npy', wide[0])
    for name, match in (('c.npy', 'NaN'), ('d.npy', 'must hold'), ('e.txt', 'must end in')):
        with pytest.raises(ValueError, match=match):
            LoadSlices()(dict(img_path=str(tmp_path / name)))
    with pytest.raises(ValueError, match='window'):
        LoadSlices(window=(3, 3))
    with pytest.raises(ValueError, match='axis'):
        LoadSlices(axis=3)


def test_nifti(tmp_path):
    try:
        import nibabel
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match='pip install nibabel'):
            LoadSlices(axis=2)(dict(img_path=str(tmp_path / 'x.nii.gz')))
        return
    x = volume(6, 7, 5).astype('>i2')  # also in the other byte order
    for name, zooms in (('a.nii', (1, 1, 3)), ('b.nii.gz', (1, 2, 1))):
        image = nibabel.Nifti1Image(x, np.diag([*zooms, 1]), nibabel.Nifti1Header(endianness='>'))
        image.header.set_zooms(zooms)
        nibabel.save(image, tmp_path / name)
    load = LoadSlices(axis=2, window=(0, 255))
    assert np.array_equal(load(dict(img_path=str(tmp_path / 'a.nii')))['img'], np.moveaxis(x, 2, 0))
    with pytest.warns(UserWarning, match='distorted'):
        assert load(dict(img_path=str(tmp_path / 'b.nii.gz')))['img'].shape == (5, 6, 7)


def test_frames_of_a_video(tmp_path):
    pytest.importorskip('av')
    from clusterplug.datasets.video.encoding import write_video

    frames = np.repeat(np.arange(6, dtype=np.uint8)[:, None, None, None] * 40, 32, 1).repeat(32, 2).repeat(3, 3)
    write_video(tmp_path / 'clip.mp4', frames, 6)
    found = LoadSlices(max_slices=3)(dict(img_path=str(tmp_path / 'clip.mp4')))['img']
    assert found.shape == (3, 32, 32, 3)
    assert np.abs(found.mean((1, 2, 3)) - [40, 120, 200]).max() < 10
    packed = PackViews()(SliceViews(2, 16)(dict(img=found, sample_idx=1)))
    assert packed['inputs']['views'][1].shape == (3, 3, 16, 16)


def test_padding_takes_no_part():
    model = tiny().train()
    x = inputs()
    assert x['mask'].sum(1).tolist() == [5, 3, 4]
    losses = []
    for fill in (0.0, 1e4, float('nan')):
        torch.manual_seed(0)
        model.load_state_dict(tiny().state_dict())
        views = [view.masked_fill(~x['mask'][..., None, None, None], fill) for view in x['views']]
        losses.append(model.loss(dict(views=views, mask=x['mask'])))
        assert sorted(losses[-1]) == ['loss_inter', 'loss_intra', 'loss_mask']
    for name, value in losses[0].items():
        assert value == losses[1][name] == losses[2][name]
    model.eval()
    together = model.predict(x)
    alone = model.predict({**x, 'views': [x['views'][0][1:2, :3]], 'mask': x['mask'][1:2, :3]})
    for name in ('features', 'embeddings', 'slice_features'):
        torch.testing.assert_close(together[1].get(name), alone[0].get(name), rtol=1e-4, atol=1e-5)
        assert together[1].get(name).shape == (1, 8)
    assert torch.equal(model.embed_samples(x)[1:2], together[1].embeddings)
    assert [each.shape for each in model(x)] == [(3, 5, 8)] * 2


def test_stages_are_weights():
    mask_only = tiny(
        head=None, volume_head=None, loss=dict(type='clusterplug.IntraInterLoss', intra_weight=0, inter_weight=0),
        freeze_backbone=True,
    ).train()  # fmt: skip
    still = mask_only.backbone[1].running_mean.clone()
    losses = mask_only.loss(inputs())
    assert list(losses) == ['loss_mask']
    losses['loss_mask'].backward()
    assert torch.equal(mask_only.backbone[1].running_mean, still)
    assert all(p.grad is None for p in mask_only.backbone.parameters())
    assert all(p.grad is not None for p in mask_only.slices.decoder.parameters())
    for missing, weight in (('head', 'intra_weight'), ('volume_head', 'inter_weight')):
        with pytest.raises(ValueError, match=f'{missing} must be given, as {weight}'):
            tiny(**{missing: None})


def test_refused():
    model = tiny()
    with pytest.raises(ValueError, match='at least 2 views'):
        model.train().loss(inputs(views=1))
    with pytest.raises(ValueError, match='put SliceViews into the pipeline'):
        model.predict(dict(views=[randn(2, 3, 8, 8)]))
    with pytest.raises(ValueError, match='give a neck'):
        tiny(encoder=InterSliceEncoder(16, 1, 2, downsample=2)).predict(inputs())
    prepare = MultiViewPreprocessor()
    for views, match in (
        ([[randn(3, 3, 8, 8)], [randn(2, 3, 8, 8)]], 'same slices'),
        ([[randn(3, 3, 8, 8), randn(3, 3, 8, 9)]] * 2, 'one size'),
        ([[randn(0, 3, 8, 8)]] * 2, 'at least one'),
    ):
        with pytest.raises(ValueError, match=match):
            prepare(dict(inputs=dict(views=views)))


@pytest.fixture(scope='module')
def volumes(tmp_path_factory):
    root = tmp_path_factory.mktemp('volumes')
    (root / 'volumes').mkdir()
    parts = dict(train=12, test=8)
    arrays = {f'{part}_images': np.stack([volume(16, 16, 16, n) for n in range(k)]) for part, k in parts.items()}
    labels = {f'{part}_labels': (np.arange(k) % 2)[:, None] for part, k in parts.items()}
    np.savez(root / 'volumes' / 'adrenalmnist3d_64.npz', **arrays, **labels)
    return root


def trained(volumes, work_dir, monkeypatch, max_epochs, resume=False):
    from mmengine.runner import Runner

    monkeypatch.setenv('CLUSTERPLUG_DATA', str(volumes))
    path = CONFIGS / 'intra-inter_second-small_1xb32-20e_adrenal-slices.py'
    config = load_config(str(path), work_dir=str(work_dir))
    config.train_dataloader.update(batch_size=4, num_workers=0)
    for dataset in (config.train_dataloader.dataset, *config.val_dataloader.dataset.datasets):
        dataset.pipeline[0].update(size=16, num_slices=6)
    config.train_cfg.update(max_epochs=max_epochs, val_interval=2)
    config.default_hooks.checkpoint.interval = 1
    config.param_scheduler, config.resume = None, resume
    config.experiment_name = f'{work_dir.name}_{max_epochs}'
    compat.apply_all()
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_config_trains_probes_and_resumes(volumes, tmp_path, monkeypatch):
    pytest.importorskip('mmdet3d')
    straight = trained(volumes, tmp_path / 'straight', monkeypatch, 2)
    trained(volumes, tmp_path / 'stopped', monkeypatch, 1)
    resumed = trained(volumes, tmp_path / 'stopped', monkeypatch, 2, resume=True)
    found = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(found[name], value), name
    scalars = straight.message_hub.log_scalars
    for term in ('intra', 'inter', 'mask'):
        assert np.isfinite(scalars[f'train/loss_{term}'].data[0]).all()
    assert 0 <= scalars['val/linear_probe/accuracy'].data[0][-1] <= 100


@pytest.mark.slow
def test_config_of_videos_trains(tmp_path, monkeypatch):
    pytest.importorskip('mmdet3d')
    pytest.importorskip('av')
    from mmengine.runner import Runner

    from clusterplug.datasets.video.encoding import write_video

    folder = tmp_path / 'data' / 'moving_sprites' / 'videos'
    folder.mkdir(parents=True)
    for n in range(8):
        write_video(folder / f'{n}.mp4', np.stack([volume(12, 32, 32, n)] * 3, -1), 6)
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / 'intra-inter_second-small_1xb32-20e_moving-sprites.py'
    config = load_config(str(path), work_dir=str(tmp_path / 'work'))
    config.train_dataloader.update(batch_size=4, num_workers=0)
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    config.param_scheduler, config.experiment_name = None, 'sprites'
    compat.apply_all()
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 2
    assert np.isfinite(runner.message_hub.log_scalars['train/loss_intra'].data[0]).all()


def test_sweeps_are_slices_oldest_first():
    #            x   y   z  intensity age
    points = [[9.9, 9.9, 3, 0.5, 0.0], [9.9, 9.9, -3, 0.7, 0.0], [-9.9, 0.1, 0, 1, 0.0], [30, 0, 0, 1, 0.0],
              [0.1, -9.9, 9, 0, 0.2], [math.nan, 0, 0, 0, 0.2]]  # fmt: skip
    draw = SweepSlices(radius=10, size=4, heights=(-3, 3), most_points=3)
    old, new = draw(dict(points=torch.tensor(points)))['img']
    assert new[0, 0].tolist() == [255, round(255 * math.log(3) / math.log(4)), 153]  # forwards and to the left
    assert new[3, 1].tolist() == [128, 128, 255]  # one of three points: half of the logarithm
    assert old[1, 3].tolist() == [255, 128, 0]
    assert [int((each.any(-1)).sum()) for each in (old, new)] == [1, 2]
    once = SweepSlices(radius=10, size=4, least_slices=3)(dict(points=np.array(points[:3])))['img']
    assert len(once) == 3
    assert np.array_equal(once[0], once[2])
    for wrong, text in (([[1.0, 2, 3, 4]], 'column 4'), ([points[5]], 'finite point'),
                        ([[0, 0, 0, 0, n] for n in range(70)], '70 different')):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            draw(dict(points=np.array(wrong)))
    for options in (dict(radius=0), dict(size=0), dict(heights=(1, 0)), dict(most_points=0), dict(age=2)):
        with pytest.raises(ValueError, match=next(iter(options))):
            SweepSlices(**options)


@pytest.mark.slow
def test_config_of_sweeps_trains(tmp_path):
    pytest.importorskip('mmdet3d')
    from mmengine.runner import Runner

    write_tiny_semantickitti(tmp_path / 'city', num_points=1500)
    path = CONFIGS / 'intra-inter_second-small_1xb8-10e_lidar-city-sweeps.py'
    config = load_config(str(path), work_dir=str(tmp_path / 'work'))
    config.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    config.train_dataloader.dataset.data_root = str(tmp_path / 'city')
    config.train_cfg.update(max_epochs=2)
    config.param_scheduler, config.experiment_name = None, 'sweeps'
    compat.apply_all()
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 2
    for term in ('intra', 'inter', 'mask'):
        assert np.isfinite(runner.message_hub.log_scalars[f'train/loss_{term}'].data[0]).all()


SIZES = (3, 5)  # volumes of the two ranks


def joint():
    torch.manual_seed(0)
    slices, volumes = [randn(8, 4, 5, seed=s) for s in range(2)], [randn(8, 3, seed=s + 5) for s in range(2)]
    x, lengths = randn(8, 4, 8, seed=9), torch.tensor([4, 2, 3, 4, 4, 2, 3, 4])
    mask = torch.arange(4) < lengths[:, None]
    hidden = (torch.arange(4) == torch.arange(8)[:, None] % 2) | ((lengths[:, None] == 4) & (torch.arange(4) == 2))
    model = MaskedSliceModel(InterSliceEncoder(8, 1, 2, downsample=2, dropout=0.0), 0.3)
    return slices, volumes, x, mask, hidden, model


def step(slices, volumes, x, mask, hidden, model):
    model.draw = lambda *args: hidden
    inputs = [each.clone().requires_grad_() for each in (*slices, *volumes)]
    losses = IntraInterLoss()(inputs[:2], inputs[2:], model(x, mask), mask)
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}, [each.grad for each in inputs], model.token.grad


def on_rank(rank, world_size):
    slices, volumes, x, mask, hidden, model = joint()
    part = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    return step([s[part] for s in slices], [v[part] for v in volumes], x[part], mask[part], hidden[part], model)


@pytest.mark.slow
def test_two_uneven_ranks_equal_one_process():
    losses, grads, token = step(*joint())
    ranks = run_gloo(on_rank, 2)
    for name, value in losses.items():
        torch.testing.assert_close((ranks[0][0][name] + ranks[1][0][name]) / 2, value, msg=name)
    for n, grad in enumerate(grads):
        torch.testing.assert_close(torch.cat([rank[1][n] for rank in ranks]) / 2, grad)
    torch.testing.assert_close((ranks[0][2] + ranks[1][2]) / 2, token)
