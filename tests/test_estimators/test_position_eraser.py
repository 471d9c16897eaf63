# SPDX-License-Identifier: Apache-2.0
"""PositionEraser: the three maps, their invariants, one pass in parts, folding, real features, bad input."""

import copy
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from clusterplug.estimators import PositionEraser
from clusterplug.functional import erase_directions


def rng(seed=0):
    return np.random.default_rng(seed)


def grid(side, dims=2):
    axes = np.meshgrid(*[np.linspace(0, 1, side)] * dims, indexing='ij')
    return np.stack(axes, -1).reshape(-1, dims)


def synthetic(images=60, side=12, dim=64, seed=0, spread=0.9):
    """Class means of 6 Voronoi cells, 8 functions of the position in orthonormal directions, noise (card, part 4)."""
    draw = rng(seed)
    points = grid(side)
    row, column = points.T
    functions = [f(a) for a in (row, column) for f in (lambda v: v, lambda v: np.sin(3 * v), lambda v: np.cos(3 * v),
                                                       np.square)]  # fmt: skip
    functions = np.stack([(f - f.mean()) / f.std() for f in functions], 1)
    frame = np.linalg.qr(draw.standard_normal((dim, 8)))[0].T
    means = spread * draw.standard_normal((6, dim))
    seeds = draw.random((images, 6, 2))
    labels = ((points[None, :, None] - seeds[:, None]) ** 2).sum(-1).argmin(-1)
    x = means[labels] + 6 * functions @ frame + 0.6 * draw.standard_normal((images, side * side, dim))
    return x, points, labels


def r2(train, test, positions):
    """R^2 of a plain least-squares probe with a constant, read on other images."""
    flat = train.reshape(-1, train.shape[-1])
    y = np.tile(positions, (len(train), 1))
    weights = np.linalg.lstsq(np.c_[flat, np.ones(len(flat))], y, rcond=1e-10)[0]
    other = test.reshape(-1, train.shape[-1])
    y = np.tile(positions, (len(test), 1))
    error = y - np.c_[other, np.ones(len(other))] @ weights
    return 1 - (error**2).sum() / ((y - y.mean(0)) ** 2).sum()


@pytest.fixture(scope='module')
def data():
    return synthetic()


def test_leace_is_the_least_oblique_projector(data):
    x, positions, _ = data
    eraser = PositionEraser().fit(x, positions)
    p = eraser.projection_
    np.testing.assert_allclose(p @ p, p, atol=1e-9)
    assert np.linalg.matrix_rank(p, tol=1e-8) == 62
    assert np.abs(p - p.T).max() > 1e-3
    flat, y = x.reshape(-1, 64), np.tile(positions, (60, 1))
    erased = eraser.transform(flat)
    np.testing.assert_allclose((erased - erased.mean(0)).T @ (y - y.mean(0)) / len(y), 0, atol=1e-10)
    np.testing.assert_allclose(erased.mean(0), flat.mean(0), atol=1e-10)
    assert eraser.r2_[0] > 0.99
    assert eraser.r2_[1] < 0.01
    # in any unit: meters next to milliseconds
    scaled = PositionEraser().fit(x, positions * [1e6, 1e-3])
    np.testing.assert_allclose(scaled.projection_, p, atol=1e-7)
    # the map that projects out the cross-covariance erases as well, and moves the features further
    cross = (flat - flat.mean(0)).T @ (y - y.mean(0))
    orthogonal = erase_directions(torch.from_numpy(flat), torch.from_numpy(cross.T)).numpy()
    assert np.abs((orthogonal - orthogonal.mean(0)).T @ (y - y.mean(0))).max() / len(y) < 1e-10
    assert ((erased - flat) ** 2).sum() < ((orthogonal - flat) ** 2).sum()


def test_leace_by_its_formula_and_white_features(data):
    x, positions, _ = data
    flat, y = x.reshape(-1, 64)[:3000], np.tile(positions, (60, 1))[:3000]
    eraser = PositionEraser().fit(flat, y)
    centered = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered / 3000)
    root, inverse = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    q = np.linalg.qr(inverse @ centered.T @ (y - y.mean(0)))[0]
    expected = np.eye(64) - root @ q @ q.T @ inverse  # of column vectors
    np.testing.assert_allclose(eraser.projection_.T, expected, atol=1e-7)
    np.testing.assert_allclose(eraser.transform(flat), centered @ expected.T + flat.mean(0), atol=1e-6)
    white = centered @ inverse
    p = PositionEraser().fit(white, y).projection_
    cross = torch.from_numpy((white.T @ (y - y.mean(0))).T.copy())
    np.testing.assert_allclose(p, erase_directions(torch.eye(64, dtype=torch.float64), cross).numpy(), atol=1e-7)


@pytest.mark.parametrize('mode', ['iterative', 'sigmoid'])
def test_loops_give_an_orthogonal_projector(data, mode):
    x, positions, _ = data
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        eraser = PositionEraser(4, mode=mode).fit(x[:12], positions)
    p, u = eraser.projection_, eraser.directions_
    assert u.shape == (8, 64)
    np.testing.assert_allclose(u @ u.T, np.eye(8), atol=1e-10)
    np.testing.assert_allclose(p, p.T, atol=1e-12)
    np.testing.assert_allclose(p @ p, p, atol=1e-10)
    assert np.linalg.matrix_rank(p, tol=1e-8) == 64 - 8
    # step by step
    z = x[0]
    for unit in u:
        z = z - np.outer(z @ unit, unit)
    np.testing.assert_allclose(eraser.transform(x[0]), z, atol=1e-9)
    # a sigmoid head without bias that lies in U says 0.5 everywhere
    np.testing.assert_allclose(1 / (1 + np.exp(-eraser.transform(x[0]) @ u.T)), 0.5, atol=1e-9)
    assert len(eraser.r2_) == 5
    assert eraser.r2_[0] > 0.99
    assert eraser.r2_[-1] < 0.75


def test_synthetic_figures_of_the_card(data):
    """R^2 1.00 -> <= 0.05 with 8 iterations and with LEACE at once, read on other images than those of the fit."""
    x, positions, _ = data
    train, test = x[:30], x[30:]
    assert r2(train, test, positions) > 0.99
    found = []
    for number in (1, 2, 4, 8):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            eraser = PositionEraser(number, mode='iterative').fit(train, positions)
        found.append(r2(eraser.transform(train), eraser.transform(test), positions))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.05
    leace = PositionEraser().fit(train, positions)
    assert r2(leace.transform(train), leace.transform(test), positions) < 0.05


@pytest.mark.parametrize('mode', ['leace', 'iterative'])
def test_parts_and_offsets_give_the_same_map(data, mode):
    x, positions, _ = data
    whole = PositionEraser(8, mode=mode).fit(x, positions)
    parts = PositionEraser(8, mode=mode)
    parts.partial_fit(x[0, :20], positions[:20])
    assert not hasattr(parts, 'projection_')
    parts.partial_fit(x[0, 20:], positions[20:])
    for first in range(1, 60, 17):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            parts.partial_fit(x[first : first + 17], positions)
    np.testing.assert_allclose(parts.projection_, whole.projection_, atol=1e-7)
    shifted = PositionEraser(8, mode=mode).fit(x + 1e4, 300 * positions - 20)
    np.testing.assert_allclose(shifted.projection_, whole.projection_, atol=1e-5)
    if mode == 'leace':
        np.testing.assert_allclose(shifted.transform(x[0] + 1e4) - 1e4, whole.transform(x[0]), atol=1e-5)


@pytest.mark.parametrize('dims', [1, 2, 3])
def test_one_two_and_three_coordinates(dims):
    positions = grid(6, dims)
    x = rng(1).standard_normal((-(-600 // len(positions)) + 4, len(positions), 20))
    x[..., :dims] += 3 * positions
    for mode, removed in (('leace', dims), ('iterative', 2 * dims)):
        eraser = PositionEraser(2, mode=mode).fit(x, positions[:, 0] if dims == 1 else positions)
        assert np.linalg.matrix_rank(eraser.projection_, tol=1e-8) == 20 - removed
        assert eraser.r2_[-1] < 0.1
    same = PositionEraser().fit(x.reshape(-1, 20), np.tile(positions, (len(x), 1)))
    np.testing.assert_allclose(same.projection_, PositionEraser().fit(x, positions).projection_, atol=1e-9)


def test_kinds_of_arrays_types_and_files(data, tmp_path):
    x, positions, _ = data
    single = torch.from_numpy(x[:20]).float()
    eraser = PositionEraser().fit(single, torch.from_numpy(positions))
    assert isinstance(eraser.projection_, torch.Tensor)
    out = eraser.transform(single)
    assert out.dtype == torch.float32
    assert out.shape == single.shape
    exact = PositionEraser().fit(x[:20], positions)
    np.testing.assert_allclose(out.numpy(), exact.transform(x[:20]), atol=2e-4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(eraser.transform(single), out)
    half = eraser.transform(single.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(half.float().numpy(), out.numpy(), atol=0.2)
    exact.save(tmp_path / 'eraser.npz')
    again = PositionEraser.load(tmp_path / 'eraser.npz')
    np.testing.assert_array_equal(again.transform(x[0]), exact.transform(x[0]))
    assert again.r2_[0] > 0.9
    np.testing.assert_array_equal(copy.deepcopy(exact).transform(x[0]), exact.transform(x[0]))
    strided = np.asfortranarray(x[:20])[:, ::-1]
    np.testing.assert_allclose(PositionEraser().fit(strided, positions[::-1]).projection_, exact.projection_, atol=1e-7)


@pytest.mark.parametrize('mode', ['leace', 'iterative'])
def test_folded_layers_give_erased_features(mode):
    torch.manual_seed(0)
    inputs, positions = torch.randn(30, 36, 10), torch.from_numpy(grid(6))
    for bias in (True, False):
        linear = nn.Linear(10, 16, bias=bias)
        eraser = PositionEraser(3, mode=mode).fit(linear(inputs) + positions.float() @ torch.ones(2, 16), positions)
        expected = eraser.transform(linear(inputs)).detach()
        assert eraser.fold_into(linear) is linear
        torch.testing.assert_close(linear(inputs).detach(), expected, rtol=1e-4, atol=1e-5)
    for affine in (True, False):
        norm = nn.LayerNorm(10, elementwise_affine=affine)
        if affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        eraser = PositionEraser(3, mode=mode).fit(norm(inputs).detach(), positions)
        folded = eraser.fold_into(norm)
        torch.testing.assert_close(
            folded(inputs).detach(), eraser.transform(norm(inputs).detach()), rtol=1e-4, atol=1e-5
        )

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(10)

        def forward(self, x):
            return self.norm(x)

    backbone = Backbone().eval()
    eraser = PositionEraser(3, mode=mode).fit(backbone(inputs).detach(), positions)
    expected = eraser.transform(backbone(inputs).detach())
    assert eraser.fold_into(backbone) is backbone
    torch.testing.assert_close(backbone(inputs).detach(), expected, rtol=1e-4, atol=1e-5)
    assert not backbone.norm.training
    for path in ('layernorm', 'encoder.ln'):  # of transformers, of torchvision
        norm = nn.LayerNorm(10)
        other = nn.ModuleDict({'layernorm': norm} if path == 'layernorm' else {'encoder': nn.ModuleDict({'ln': norm})})
        eraser = PositionEraser(3, mode=mode).fit(norm(inputs).detach(), positions)
        expected = eraser.transform(norm(inputs).detach())
        assert eraser.fold_into(other) is other
        torch.testing.assert_close(other.get_submodule(path)(inputs).detach(), expected, rtol=1e-4, atol=1e-5)


def test_loop_ends_early_and_warns_late(data):
    x, positions, _ = data
    plain = rng(2).standard_normal((2000, 10))
    plain = np.linalg.qr(plain - plain.mean(0))[0] * 40  # white: one step takes all
    y = plain[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]])
    early = PositionEraser(5, mode='iterative').fit(plain, y)  # y is linear in x: nothing is left after one step
    assert early.n_iter_ == 1
    assert early.r2_[-1] < 1e-6
    with pytest.warns(UserWarning, match='still reads the position'):
        PositionEraser(1, mode='iterative').fit(x, positions)


def test_verbose_prints_r2(data, capsys):
    x, positions, _ = data
    PositionEraser(8, mode='iterative', verbose=1).fit(x, positions)
    assert 'iteration 8: held-out R^2' in capsys.readouterr().out


def test_bad_input(data):
    x, positions, _ = data
    constant = positions * [1, 0]
    for features, given, message in [
        (x, constant, 'positions must vary in every coordinate'),
        (x, np.c_[positions, positions.sum(1)], 'positions must vary'),
        (x, positions[:-1], 'positions must have shape'),
        (x[:, :, 0], positions, 'positions must have shape'),
        (x[0, :64], positions[:64], 'more rows than channels, got 64 rows of 64'),
        (x * np.where(np.arange(60) == 3, np.nan, 1)[:, None, None], positions, 'must be finite'),
        (x[:0], positions, 'features must have shape'),
    ]:
        with pytest.raises(ValueError, match=message):
            PositionEraser().fit(features, given)
    with pytest.raises(ValueError, match="mode must be one of 'leace', 'iterative', 'sigmoid'"):
        PositionEraser(mode='pca').fit(x, positions)
    with pytest.raises(ValueError, match='n_iter must be at least 1'):
        PositionEraser(0).fit(x, positions)
    with pytest.raises(ValueError, match='must not exceed the 64 channels'):
        PositionEraser(33, mode='iterative').fit(x, positions)
    with pytest.raises(ValueError, match='not fitted'):
        PositionEraser().transform(x)
    with pytest.raises(ValueError, match="mode 'sigmoid' passes over the data many times"):
        PositionEraser(mode='sigmoid').partial_fit(x, positions)
    eraser = PositionEraser().fit(x, positions)
    with pytest.raises(ValueError, match='expecting 64 features'):
        eraser.transform(x[..., :10])
    with pytest.raises(TypeError, match='fold_into takes'):
        eraser.fold_into(nn.ReLU())
    with pytest.raises(ValueError, match='must give 64 channels'):
        eraser.fold_into(nn.Linear(64, 8))


@pytest.mark.slow
def test_real_vision_transformer(real_data):
    """DINOv2-S on frames of MSR-VTT: R^2 of the position on other videos, and the energy that is left."""
    import io
    import sys

    from PIL import Image

    sys.path.insert(0, str(real_data / 'vit'))
    from load_dinov2s_focus import load

    sys.path.pop(0)
    archive = zipfile.ZipFile(real_data / 'video' / 'msrvtt_1kA_frame_pairs.zip')
    videos = {}
    for name in sorted(archive.namelist()):
        if name.endswith('.jpg'):
            videos.setdefault(name.split('/')[-2], name)
    pictures = []
    for name in list(videos.values())[::10][:40]:
        image = Image.open(io.BytesIO(archive.read(name))).convert('RGB').crop((0, 0, 320, 240)).resize((224, 224))
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.stack(pictures) - mean[:, None, None]) / deviation[:, None, None]
    vit = load()[0]
    with torch.inference_mode():
        tokens = torch.cat([vit(part)[0][:, 1:] for part in x.split(8)]).double().numpy()
    positions = grid(16)
    train, test = tokens[:25], tokens[25:]
    assert r2(train, test, positions) > 0.6
    leace = PositionEraser().fit(train, positions)
    assert abs(r2(leace.transform(train), leace.transform(test), positions)) <= 0.01
    centered = test - test.mean((0, 1))
    erased = leace.transform(test)
    assert ((erased - erased.mean((0, 1))) ** 2).sum() / (centered**2).sum() >= 0.95
    with pytest.warns(UserWarning, match='still reads'):
        loop = PositionEraser(8, mode='iterative').fit(train, positions)
    assert r2(loop.transform(train), loop.transform(test), positions) > 0.1
    assert loop.r2_[-1] < loop.r2_[0]
