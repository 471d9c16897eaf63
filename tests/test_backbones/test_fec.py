# SPDX-License-Identifier: Apache-2.0
"""FEC: parameter counts, the dense form, sizes, masks, gradients, precision, bad input."""

import pytest
import torch

from clusterplug.backbones import FEC, create, list_models, load_fec, register_in_timm, resolve_arch
from clusterplug.testing import count_host_syncs, count_launches, run_gloo
from clusterplug.testing.plain_fec import PlainFEC

# per module: stem, stages, pools, norm and head with 1000 classes
PARAMETERS = {
    'small': (2592, (78918, 340744, 2114810, 2015492), (22848, 138964, 691520), 640 + 321000, 5727528),
    'base': (5184, (182788, 627204, 6415884, 4994052), (90752, 452160, 1804800), 1024 + 513000, 15086848),
    'large': (5184, (415240, 1353224, 14309400, 10775560), (90752, 452160, 1804800), 1024 + 513000, 29720344),
}
TINY = dict(
    blocks=(1, 2, 1), dims=(8, 12, 20), mlp_ratios=(2, 2, 2), heads=(2, 1, 2), head_dims=(4, 6, 4), grid=(3, 2, 2),
    fold=(1, 1, 1), layer_scale=0.5,
)  # fmt: skip


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def lively(model, seed=0):
    """Weights as after training: branches that matter, scales and shifts off their start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if 'layer_scale' in name or 'sim_alpha' in name:
            parameter.data.uniform_(0.3, 1.5, generator=generator)
        elif 'sim_beta' in name or name.endswith('bias'):
            parameter.data.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameters(arch):
    with torch.device('meta'):
        model = FEC(arch, num_classes=1000)
    stem, stages, pools, last, total = PARAMETERS[arch]
    assert count(model.stem) == stem
    assert tuple(count(stage) for stage in model.stages) == stages
    assert tuple(count(pool) for pool in model.pools) == pools
    assert count(model.norms) + count(model.head) == last
    assert count(model) == total


@pytest.mark.parametrize('arch', PARAMETERS)
def test_equals_the_dense_form(arch):
    torch.manual_seed(1)
    plain = lively(PlainFEC(resolve_arch(arch))).double()
    model = FEC(arch, num_classes=1000).double().eval()
    load_fec(model, plain.state_dict())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('task', ['segmentation', 'detection'])
@pytest.mark.parametrize('similarity', ['learned', 'official'])
def test_maps_equal_those_of_the_dense_form(task, similarity):
    torch.manual_seed(1)
    plain = lively(PlainFEC(resolve_arch('small', task), num_classes=0)).double()
    model = FEC('small', task=task, pool_similarity=similarity).double().eval()
    load_fec(model, plain.state_dict())
    x = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(model(x), plain(x)):
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_gradients_equal_those_of_the_dense_form():
    torch.manual_seed(2)
    plain = lively(PlainFEC(resolve_arch(TINY), 5)).double()
    model = FEC(TINY, num_classes=5, pool_similarity='official').double()
    load_fec(model, plain.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for each in (plain, model):
        each(x).square().sum().backward()
    theirs = PlainFEC(resolve_arch(TINY), 5).double()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    theirs.load_state_dict(gradients, strict=False)
    expected = FEC(TINY, num_classes=5).double()
    load_fec(expected, theirs.state_dict())
    expected = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].data, atol=1e-8, rtol=1e-6, msg=name)


def test_what_pools_compare_by_is_trained_unless_official():
    x = torch.randn(2, 3, 64, 64)
    models = {}
    for similarity in ('learned', 'official'):
        torch.manual_seed(0)
        models[similarity] = FEC(dict(type='small', layer_scale=0.5), num_classes=4, pool_similarity=similarity)
        models[similarity](x).square().sum().backward()
    untrained = {name for name, parameter in models['official'].named_parameters() if parameter.grad is None}
    assert untrained == {f'pools.{n}.features.{what}' for n in range(3) for what in ('weight', 'bias')}
    assert all(not dict(models['official'].named_parameters())[name].requires_grad for name in untrained)
    flat = {name for name, parameter in models['learned'].named_parameters() if not parameter.grad.any()}
    # with 2 x 2 pixels left, an average is all there is to compare
    assert not flat & untrained
    assert models['learned'](x).equal(models['official'](x))


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (33, 47), (57, 64), (100, 36)])
@pytest.mark.parametrize('task', ['classification', 'detection'])
def test_any_size(size, task):
    model = FEC(TINY | dict(fold=(2, 2, 1)) if task == 'detection' else TINY)
    maps = model(torch.randn(1, 3, *size))
    for stage, each in enumerate(maps):
        stride = 4 * 2**stage
        assert each.shape == (1, TINY['dims'][stage], -(-size[0] // stride), -(-size[1] // stride))
        assert each.isfinite().all()


@pytest.mark.parametrize('classes', [0, 5])
def test_a_padded_batch_is_its_images_alone(classes):
    torch.manual_seed(0)
    model = FEC(TINY, num_classes=classes).double().eval()
    sizes = ((64, 52), (37, 45), (9, 64))
    x = torch.full((3, 3, 64, 64), torch.nan, dtype=torch.float64)
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    for number, (height, width) in enumerate(sizes):
        x[number, :, :height, :width] = torch.randn(3, height, width, dtype=torch.float64)
        mask[number, :height, :width] = True
    with torch.no_grad():
        together = model(x, mask)
        for number, (height, width) in enumerate(sizes):
            alone = model(x[number : number + 1, :, :height, :width])
            if classes:
                torch.testing.assert_close(together[number : number + 1], alone)
            else:
                for many, one in zip(together, alone):
                    rows, columns = one.shape[2:]
                    torch.testing.assert_close(many[number : number + 1, :, :rows, :columns], one)
                    assert not many[number, :, rows:].any()
                    assert not many[number, :, :, columns:].any()


def test_batches_of_none_and_one():
    model = FEC(TINY, num_classes=5).eval()
    assert model(torch.zeros(0, 3, 32, 32)).shape == (0, 5)
    assert [len(each) for each in FEC(TINY)(torch.zeros(0, 3, 30, 32))] == [0, 0, 0]
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(torch.cat([model(each[None]) for each in x]), model(x), atol=1e-5, rtol=1e-4)


def test_recomputing_blocks_gives_the_same_gradients():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = FEC(TINY, num_classes=5, with_cp=with_cp, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_mixed_precision():
    torch.manual_seed(0)
    model = FEC(TINY, num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        out = model(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


def test_clusters_of_all_layers():
    model = FEC('small').eval()
    x = torch.randn(2, 3, 64, 96)
    found = model.clusters(x)
    assert [each.kind for each in found].count('pool') == 3
    assert [each.name for each in found][:5] == [
        'stage 1 block 1', 'stage 1 block 2', 'stage 1 block 3', 'pool 1', 'stage 2 block 1',
    ]  # fmt: skip
    assert found[0].clusters.labels.shape == (2, 4, 16, 24)
    assert found[3].clusters.labels.shape == (2, 1, 16, 24)
    assert found[3].clusters.representatives.shape == (2, 1, 8 * 12, 64)


def test_made_by_name_and_by_mmengine():
    assert list_models() == ['fec_small', 'fec_base', 'fec_large']
    assert create('fec_small', num_classes=7).head.out_features == 7
    registry = pytest.importorskip('mmengine.registry', reason='needs mmengine')
    model = registry.MODELS.build(dict(type='clusterplug.FEC', arch='base', out_indices=(1, 3)))
    assert model.out_channels == [128, 512]
    assert [each.shape[1] for each in model(torch.zeros(1, 3, 32, 32))] == [128, 512]


def test_made_by_timm():
    timm = pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')
    names = register_in_timm()
    assert names == register_in_timm()
    assert set(names) <= set(timm.list_models('fec*'))
    model = timm.create_model('fec_small', num_classes=6, in_chans=1, drop_path_rate=0.1)
    x = torch.randn(2, 1, 64, 64)
    model.eval()
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    maps = timm.create_model('fec_small', features_only=True, out_indices=(1, 3))(torch.randn(1, 3, 64, 64))
    assert [each.shape[1] for each in maps] == [64, 320]
    with pytest.raises(ValueError, match='no weights to download'):
        timm.create_model('fec_small', pretrained=True)


def test_bad_input():
    model = FEC(TINY, num_classes=2)
    with pytest.raises(ValueError, match=r'x must have 3 channels, got 1.*in_channels=1.*expand'):
        model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r'x must have shape \(batch, channels, height, width\)'):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(TypeError, match='x must be a floating tensor'):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    x = torch.zeros(3, 3, 32, 32)
    x[1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r'x must be finite, got NaN or inf in the images \[1\]'):
        model(x)
    with pytest.raises(ValueError, match='arch must be one of small, base, large'):
        FEC('tiny')
    with pytest.raises(ValueError, match='name must be one of fec_small, fec_base, fec_large'):
        create('fec_tiny')
    with pytest.raises(ValueError, match=r"arch has the fields .*, got 'width'"):
        FEC(dict(type='small', width=3))
    with pytest.raises(ValueError, match='needs blocks, dims'):
        FEC(dict(blocks=(1, 1)))
    with pytest.raises(ValueError, match='4 values of heads'):
        FEC(dict(type='small', heads=(1, 2)))
    with pytest.raises(TypeError, match='arch must be one of'):
        FEC(3)
    with pytest.raises(ValueError, match='task must be one of'):
        FEC(task='depth')
    with pytest.raises(ValueError, match='out_indices must be among'):
        FEC(out_indices=(4,))
    with pytest.raises(ValueError, match='num_classes must be an int of at least 0'):
        FEC(num_classes=-1)
    with pytest.raises(ValueError, match='build FEC'):
        FEC(TINY).reset_classifier(3)


def as_on_a_device(monkeypatch):
    for module in ('backbones.fec', 'functional.features._feature_members'):
        monkeypatch.setattr(f'clusterplug.{module}.host_checks_allowed', lambda tensor: False)


def test_a_step_waits_for_nothing(monkeypatch):
    """On a device: the look for NaN, which costs nothing on a CPU alone, is switched off as it is there."""
    as_on_a_device(monkeypatch)
    model, x = FEC(TINY, num_classes=5, drop_path_rate=0.1), torch.randn(2, 3, 64, 64)
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    assert not count_host_syncs(lambda: model(x).sum().backward())
    assert not count_host_syncs(lambda: model(x, mask).sum().backward())


def test_launches_do_not_grow_with_the_image(monkeypatch):
    as_on_a_device(monkeypatch)
    model = FEC(TINY, num_classes=5).eval()
    with torch.no_grad():
        small, large = (count_launches(lambda n=n: model(torch.zeros(1, 3, n, n))).total() for n in (128, 256))
    assert large <= small + 20  # one pooling more looks for the largest of its scores in groups


def step_of_a_rank(rank, world_size, similarity):
    """Two steps of data-parallel training without a search for unused parameters; returns a weight."""
    torch.manual_seed(0)
    model = FEC(TINY, num_classes=5, pool_similarity=similarity)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        # both see the whole batch, so that the mean over ranks is the gradient of one process
        parallel(images).square().mean().backward()
        optimizer.step()
    return model.pools[0].values.weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize('similarity', ['learned', 'official'])
def test_two_ranks_need_no_search_for_unused_parameters(similarity):
    first, second = run_gloo(step_of_a_rank, 2, similarity)
    assert first.equal(second)


@pytest.mark.slow
def test_compiles_in_one_piece():
    torch.compiler.reset()
    torch.manual_seed(0)
    sizes = dict(
        blocks=(1, 1), dims=(8, 12), mlp_ratios=(2, 2), heads=(2, 1), head_dims=(4, 6), grid=(3, 2), fold=(2, 1)
    )
    model = FEC(sizes | dict(layer_scale=0.5), num_classes=5)
    x = torch.randn(2, 3, 32, 36)
    compiled = torch.compile(model, fullgraph=True)
    out = compiled(x)
    torch.testing.assert_close(out, model(x), atol=1e-4, rtol=1e-3)
    out.square().sum().backward()
    assert model.pools[0].features.weight.grad.any()
