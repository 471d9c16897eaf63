# SPDX-License-Identifier: Apache-2.0
"""DEPICT and its parts: noisy and clean passes, layer-wise reconstruction, the softmax head, targets, no collapse."""

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from clusterplug.estimators import DEPICT
from clusterplug.functional import adjusted_rand_index, cluster_target
from clusterplug.heads import ClusterSoftmaxHead
from clusterplug.layers import NoisyCleanEncoder
from clusterplug.losses import LayerwiseReconstructionLoss

RNG = np.random.default_rng(0)
TRUTH = torch.arange(90) % 3
PATTERNS = RNG.normal(size=(3, 1, 8, 8))
IMAGES = (PATTERNS[TRUTH] + 0.2 * RNG.normal(size=(90, 1, 8, 8))).astype(np.float32)
SMALL = dict(channels=(8, 8), pretrain_epochs=8, head_epochs=3, epochs=5, batch_size=32, random_state=0, tol=0.0)


def network():
    layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return layers


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


# --- noisy and clean -------------------------------------------------------------------------------------------------


def test_clean_pass_is_the_backbone_and_noise_is_dropout():
    layers = network()
    encoder = NoisyCleanEncoder(layers, dropout=(0.5, 0.0, 0.25))
    noisy, clean = encoder(X, torch.Generator().manual_seed(3))
    torch.testing.assert_close(clean[-1], layers(X))
    torch.testing.assert_close(clean[0], layers[0](X))
    generator = torch.Generator().manual_seed(3)
    first = layers[0](X * (torch.rand(6, 5, generator=generator) >= 0.5) / 0.5)
    second = layers[1](first)
    third = layers[2](second * (torch.rand(6, 7, generator=generator) >= 0.25) / 0.75)
    for one, other in zip(noisy, (first, second, third), strict=True):
        torch.testing.assert_close(one, other)
    again = encoder(X, torch.Generator().manual_seed(3)).noisy[-1]
    assert torch.equal(again, noisy[-1])


def test_without_dropout_and_in_eval_mode_both_are_one_pass():
    encoder = NoisyCleanEncoder(network(), dropout=0.0)
    noisy, clean = encoder(X)
    assert all(one is other for one, other in zip(noisy, clean, strict=True))
    encoder = NoisyCleanEncoder(network(), dropout=0.5).eval()
    assert torch.equal(encoder(X).noisy[-1], encoder(X).clean[-1])


def test_any_backbone_by_the_names_of_its_stages():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.unused = (
                nn.Conv2d(1, 4, 3),
                nn.Sequential(nn.ReLU(), nn.Flatten()),
                nn.Linear(1, 1),
            )

        def forward(self, x):
            return self.block(self.stem(x)).sum(1)

    encoder = NoisyCleanEncoder(Net(), stages=['stem', 'block.0'], dropout=0.3)
    noisy, clean = encoder(torch.ones(2, 1, 5, 5))
    assert [tuple(each.shape) for each in clean] == [(2, 4, 3, 3)] * 2
    assert not torch.equal(noisy[0], clean[0])
    with pytest.raises(ValueError, match=r"\['unused'\] did not run"):
        NoisyCleanEncoder(Net(), stages=['stem', 'unused'])(torch.ones(2, 1, 5, 5))
    for options, match in [(dict(stages=None), 'stages must name'), (dict(stages=['nope']), 'nope'),
                           (dict(stages=['stem'], dropout=(0.1, 0.1)), 'one share for each'),
                           (dict(stages=['stem'], dropout=1.0), 'dropout'),
                           (dict(stages=['stem'], drop='pixel'), 'drop')]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            NoisyCleanEncoder(Net(), **options)


def test_sparse_points_lose_features_or_whole_points():
    class Points:  # as spconv's tensors
        def __init__(self, features):
            self.features = features

        def replace_feature(self, features):
            return Points(features)

    class Stage(nn.Module):
        def forward(self, points):
            return points.replace_feature(points.features * 2)

    encoder = NoisyCleanEncoder(nn.Sequential(Stage(), Stage()), dropout=(0.5, 0.0), drop='row')
    noisy, clean = encoder(Points(torch.ones(40, 6)), torch.Generator().manual_seed(0))
    assert torch.equal(clean[-1].features, torch.full((40, 6), 4.0))
    rows = noisy[-1].features
    assert set(rows.unique().tolist()) == {0.0, 8.0}
    assert all(len(row.unique()) == 1 for row in rows)
    with pytest.raises(TypeError, match='replace_feature'):
        NoisyCleanEncoder(nn.Sequential(nn.Identity()), dropout=0.5)([1, 2])


def test_copies_pickles_and_threads():
    encoder = NoisyCleanEncoder(network(), dropout=0.5)
    expected = encoder(X, torch.Generator().manual_seed(0)).noisy[-1]
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(X, torch.Generator().manual_seed(0)).noisy[-1], expected)
    found = {}

    def work(number):
        found[number] = [encoder(X, torch.Generator().manual_seed(number)).noisy[-1] for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        alone = encoder(X, torch.Generator().manual_seed(number)).noisy[-1]
        assert all(torch.equal(each, alone) for each in results)
    assert list(encoder.state_dict()) == [f'backbone.{name}' for name in network().state_dict()]


# --- reconstruction and head -----------------------------------------------------------------------------------------


def test_layerwise_reconstruction():
    outputs = [X, X[:, :3] * 2, X[:, :2]]
    targets = [X + 1, X[:, :3], X[:, :2] - 2]
    expected = 1 + 0.1 * X[:, :3].square().mean() + 0.1 * 4
    torch.testing.assert_close(LayerwiseReconstructionLoss()(outputs, targets), expected)
    weighted = LayerwiseReconstructionLoss((0.5, 0.0))(outputs, targets)
    torch.testing.assert_close(weighted, 1 + 0.5 * X[:, :3].square().mean())
    target = X.clone().requires_grad_()
    output = X.clone().requires_grad_()
    LayerwiseReconstructionLoss()([output * 2], [target]).backward()
    assert target.grad.abs().sum() > 0, 'as in the official code'
    target.grad = None
    LayerwiseReconstructionLoss(detach_targets=True)([output * 2], [target]).backward()
    assert target.grad is None
    half = LayerwiseReconstructionLoss()([X.half().clamp(-1, 1) * 60000], [torch.zeros(6, 5).half()])
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert LayerwiseReconstructionLoss()([X[:0]], [X[:0]]) == 0
    for arguments, match in [(([X], [X, X]), 'same layers'), (([], []), 'same layers'), (([X], [X[:, :1]]), 'layer 0')]:
        with pytest.raises(ValueError, match=match):
            LayerwiseReconstructionLoss()(*arguments)
    with pytest.raises(ValueError, match='one weight for each of 2'):
        LayerwiseReconstructionLoss((0.1,))(outputs, targets)


def test_gradient_of_the_head_is_p_minus_q():
    head = ClusterSoftmaxHead(5, 4)
    logits = head(X).detach().requires_grad_()
    q = cluster_target(torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).softmax(-1))
    head.loss(logits, q).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - q) / 6)
    certain = head.loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert float(certain) == 2e4, 'no log of 0'
    assert head.loss(logits[:0], q[:0]) == 0
    with pytest.raises(ValueError, match='target must have the shape'):
        head.loss(logits, q[:3])


def test_head_starts_from_centers():
    head = ClusterSoftmaxHead(5, 4)
    centers = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [9], [0.1], [0]])
    head.init_centers(centers)
    torch.testing.assert_close(head.fc.weight.norm(dim=1), torch.tensor([1.0, 1, 1, 0]))
    assert head.fc.bias.abs().sum() == 0
    for bad, match in [(centers.T, 'shape'), (centers * torch.nan, 'finite')]:
        with pytest.raises(ValueError, match=match):
            head.init_centers(bad)
    for arguments in ((0, 3), (3, 0)):
        with pytest.raises(ValueError):
            ClusterSoftmaxHead(*arguments)


# --- the estimator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('options', [{}, {'target': 'sqrt'}, {'target_momentum': 0.9}, {'detach_targets': True}])
def test_patterns_are_found(options):
    model = DEPICT(3, **{**SMALL, **options}).fit(IMAGES)
    assert adjusted_rand_index(torch.as_tensor(model.labels_), TRUTH) == 1
    assert model.cluster_sizes_.tolist() == [30, 30, 30]
    assert np.array_equal(model.predict(IMAGES), model.labels_)
    assert model.transform(IMAGES).shape == (90, 3)
    assert [len([e for e in model.history_ if e['phase'] == name]) for name in ('autoencoder', 'warm start', 'joint')] \
        == [8, 3, 5]  # fmt: skip


def test_vectors_and_streaming_masses():
    x = IMAGES.reshape(90, 64)
    model = DEPICT(3, encoder='mlp', **{**SMALL, 'channels': (32,)}).fit(x)
    assert adjusted_rand_index(torch.as_tensor(model.labels_), TRUTH) == 1
    stream = DEPICT(3, encoder='mlp', target_momentum=0.5, **{**SMALL, 'channels': (32,)}).fit(x)
    assert set(stream._state.tensors) == {'first', 'mass', 'now', 'labels'}, 'no N x K tensor is kept'


def test_no_cluster_dies_out():
    """From a softmax that gives one cluster 90 % of the mass."""
    for target in ('dec', 'sqrt'):
        model = DEPICT(3, encoder='mlp', target=target, **{**SMALL, 'channels': (32,), 'head_epochs': 0, 'epochs': 50})
        plain = model._start_joint

        def start(x, model=model, plain=plain):
            with torch.no_grad():
                model.network_.head.fc.bias.copy_(torch.tensor([2.5, 0.0, 0.0]))
            plain(x)

        model._start_joint = start
        model.fit(IMAGES.reshape(90, 64))
        assert (model.cluster_sizes_ > 15).all(), (target, model.cluster_sizes_)


def test_stopped_early_and_resumed(tmp_path):
    expected = DEPICT(3, **SMALL).fit(IMAGES)
    for at in (25, 40):
        model = DEPICT(3, **SMALL)
        plain = model._make_phases
        counts = iter(range(999))

        def make_phases(x, plain=plain, counts=counts, at=at):
            phases = plain(x)
            for phase in phases:

                def limited(rows, generator, loss=phase.loss):
                    if next(counts) == at:
                        raise KeyboardInterrupt
                    return loss(rows, generator)

                phase.loss = limited
            return phases

        model._make_phases = make_phases
        with pytest.warns(UserWarning, match='was stopped'):
            model.fit(IMAGES)
        assert model.labels_.shape == (90,)
        model.save(tmp_path / 'part.npz')
        again = DEPICT.load(tmp_path / 'part.npz').fit(IMAGES, resume=True)
        assert again.history_ == expected.history_, at
        assert np.array_equal(again.transform(IMAGES), expected.transform(IMAGES))


def test_bad_input():
    for options, match in [
        ({'target': 'kl'}, 'target must be'), ({'channels': ()}, 'at least one layer'), ({'dropout': (0.1,)}, 'share'),
        ({'target_momentum': 1.0}, 'target_momentum'), ({'kernel_sizes': 12, 'paddings': 0}, 'too small'),
        ({'kernel_sizes': (3, 3, 3)}, 'kernel_sizes'), ({'encoder': 'vit'}, 'encoder'), ({'lambda_rec': -1}, 'lambda'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            DEPICT(3, **{**SMALL, **options}).fit(IMAGES)
    with pytest.raises(ValueError, match=r'\(N, C, H, W\)'):
        DEPICT(3).fit(IMAGES[:, 0])
    with pytest.raises(ValueError, match='n_clusters=3'):
        DEPICT(3).fit(IMAGES[:2])
    with pytest.raises(ValueError, match='finite'):
        DEPICT(3).fit(IMAGES * np.nan)


def test_scikit_learn_convention():
    checks = pytest.importorskip('sklearn.utils.estimator_checks')
    quick = DEPICT(3, encoder='mlp', channels=(8,), pretrain_epochs=1, head_epochs=1, epochs=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        results = checks.check_estimator(quick, on_skip=None, on_fail=None)
    failed = {each['check_name']: each['exception'] for each in results if each['status'] == 'failed'}
    assert not failed, failed
