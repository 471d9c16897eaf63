# SPDX-License-Identifier: Apache-2.0
"""The sweep over settings of token reduction: rows, front, recommendation, files."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('timm', reason='needs timm: pip install clusterplug[vit]')

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools' / 'token_pareto.py'
_spec = importlib.util.spec_from_file_location('token_pareto', PATH)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def row(speedup, cosine):
    return dict(speedup=speedup, cosine=cosine)


def test_front_and_recommendation_by_hand():
    rows = tool.mark_pareto([row(1.0, 1.0), row(1.5, 0.9), row(1.4, 0.8), row(2.0, 0.7)])
    assert [each['pareto'] for each in rows] == ['yes', 'yes', '', 'yes']
    assert tool.recommend(rows, 1.3) is rows[1]
    assert tool.recommend(rows, 1.6) is rows[3]
    assert tool.recommend(rows, 3.0) is None


def test_miou_by_hand():
    scores = torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 1, 1]]), 2).float()
    labels = torch.tensor([[0, 1, 1, 1, 255]])
    assert tool.miou(scores, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_gflops_of_one_layer():
    layer = torch.nn.Linear(10, 20, bias=False)
    assert tool.flops(layer, torch.zeros(1, 7, 10)) == pytest.approx(2 * 7 * 10 * 20 / 1e9)


def test_a_sweep_writes_its_table_and_leaves_the_model_alone(tmp_path, monkeypatch, capsys):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2
    ).eval()
    monkeypatch.setattr(tool, 'build', lambda *args: model)
    image = torch.randn(1, 3, 64, 64)
    before = model(image)
    arguments = ['any', '--size', '64', '--num-images', '2', '--repeats', '2', '--keeps', '0.3', '1.0', '--starts', '1']
    assert tool.main([*arguments, '--speedup', '0.0001', '--out', str(tmp_path)]) == 0
    assert torch.equal(model(image), before)
    lines = (tmp_path / 'pareto.csv').read_text().splitlines()
    assert len(lines) == 1 + 1 + 3 * 2
    assert len((tmp_path / 'pareto.md').read_text().splitlines()) == len(lines) + 1
    assert 'patch.apply(model, ' in capsys.readouterr().out
    rows = [dict(zip(lines[0].split(','), line.split(','))) for line in lines[1:]]
    kept = [each for each in rows if each['keep'] == '1.0' and each['method'] != 'none']
    assert all(float(each['cosine']) == pytest.approx(1, abs=1e-5) for each in kept)
    assert all(float(each['ideal']) > 1.2 for each in rows if each['keep'] == '0.3')
    assert tool.main([*arguments, '--speedup', '1000', '--out', str(tmp_path)]) == 1
    assert 'no setting reaches 1000.00 x' in capsys.readouterr().out


def test_pictures_of_a_folder(tmp_path):
    from PIL import Image

    Image.new('RGB', (30, 20), (124, 116, 104)).save(tmp_path / 'grey.png')
    images = tool.pictures(str(tmp_path), 4, 16)
    assert images.shape == (1, 3, 16, 16)
    assert images.abs().max() < 0.02
    with pytest.raises(SystemExit, match='has none'):
        tool.pictures(str(tmp_path / '..' / tmp_path.name / 'x'), 1, 16) if (tmp_path / 'x').mkdir() is None else None


def test_a_model_with_stages_starts_in_its_longest_and_leaves_tome_out(tmp_path, monkeypatch, capsys):
    import timm

    torch.manual_seed(0)
    sizes = dict(embed_dim=16, depths=(1, 4), num_heads=(2, 2), window_size=4, patch_size=4)
    model = timm.create_model('swin_tiny_patch4_window7_224', img_size=64, **sizes).eval()
    monkeypatch.setattr(tool, 'build', lambda *args: model)
    assert tool.default_starts(tool.find_layout(model)) == [1, 2, 3]
    features = tool.output_of(model, torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 64, 32)
    arguments = ['any', '--size', '64', '--num-images', '1', '--repeats', '1', '--keeps', '0.5', '--starts', '2']
    tool.main([*arguments, '--speedup', '0.0001', '--out', str(tmp_path)])
    text = capsys.readouterr().out
    assert 'tome is left out' in text
    assert len((tmp_path / 'pareto.csv').read_text().splitlines()) == 1 + 1 + 2


def test_starts_of_a_plain_transformer():
    import timm

    model = timm.create_model('vit_tiny_patch16_224', pretrained=False)
    assert tool.default_starts(tool.find_layout(model)) == [2, 4, 6]


def segmenter(classes=5, size=32):
    """A ViT with a class token and a head over its map."""
    import timm

    class Segmenter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            sizes = dict(img_size=size, patch_size=8, embed_dim=32, depth=4, num_heads=2)
            self.backbone = timm.create_model('vit_tiny_patch16_224', pretrained=False, **sizes)
            self.head = torch.nn.Conv2d(32, classes, 1)

        def forward(self, x):
            features = self.backbone.forward_features(x)[:, 1:].mT.unflatten(2, (size // 8, size // 8))
            return torch.nn.functional.interpolate(self.head(features), size=(8, 12))

    torch.manual_seed(0)
    return Segmenter().eval()


def label_folder(tmp_path, number=2, highest=4, mode='L'):
    from PIL import Image

    folder = tmp_path / 'labels'
    folder.mkdir()
    for index in range(number):
        values = torch.randint(0, highest + 1, (24, 36), generator=torch.Generator().manual_seed(index))
        values[0, 0] = highest
        Image.fromarray(values.byte().numpy()).convert(mode).save(folder / f'{index}.png')
    return folder


def run(tmp_path, *arguments, model='any'):
    common = ['--size', '32', '--num-images', '2', '--repeats', '1', '--keeps', '0.5', '--starts', '1']
    return tool.main([model, *common, '--methods', 'average', '--out', str(tmp_path / 'out'), *arguments])


def table(tmp_path):
    lines = (tmp_path / 'out' / 'pareto.csv').read_text().splitlines()
    return [dict(zip(lines[0].split(','), line.split(','))) for line in lines[1:]]


@torch.no_grad()
def test_labels_of_a_segmenter_with_a_class_token(tmp_path, monkeypatch):
    model = segmenter()
    monkeypatch.setattr(tool, 'build', lambda *args: model)
    folder = label_folder(tmp_path)
    assert run(tmp_path, '--labels', str(folder)) == 0
    import numpy as np
    from PIL import Image

    files = sorted(folder.iterdir())
    labels = [np.asarray(Image.open(f).resize((12, 8), Image.Resampling.NEAREST)) for f in files]
    labels = torch.from_numpy(np.stack(labels))
    predicted = model(tool.pictures(None, 2, 32)).argmax(1)
    values = [
        float(((predicted == k) & (labels == k)).sum() / ((predicted == k) | (labels == k)).sum())
        for k in labels.unique()
    ]
    rows = table(tmp_path)
    assert float(rows[0]['miou']) == pytest.approx(sum(values) / len(values))
    assert rows[1]['miou'] not in ('', 'nan')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(number=1), 'a .png for each of the 2 pictures'),
        (dict(highest=7), 'name class 7, and the output of the model has 5 channels'),
        (dict(mode='RGB'), 'has mode RGB'),
    ],
)
def test_labels_that_do_not_fit(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'build', lambda *args: segmenter())
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, '--labels', str(label_folder(tmp_path, **change)))


@pytest.mark.parametrize(
    ('model', 'arguments', 'message'),
    [
        ('vit_tini_patch16_224', (), r'is no model of timm; did you mean vit_tiny_patch16_224'),
        ('vit_tiny_patch16_224', ('--pretrained', 'nothing'), 'augreg'),
        ('transformers/ViTModell', (), 'no model class.*did you mean ViTModel'),
        ('transformers/ViTModel', ('--pretrained',), 'needs the name of weights'),
        ('no_such_module:build', (), 'must be module:function'),
        ('math:no_such_function', (), 'must be module:function'),
        ('math:floor', ('--pretrained', 'x'), 'has no use for module:function'),
    ],
)
def test_unknown_models_and_weights(model, arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *arguments, model=model)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--starts', '4'), 'start and end must satisfy'),
        (('--keeps', '1.5'), 'keep_ratio must lie'),
        (('--device', 'nonsense'), 'device'),
        (('--images', 'no_such_folder'), 'must be a folder'),
    ],
)
def test_bad_options_end_in_a_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'build', lambda *args: segmenter())
    try:
        assert run(tmp_path, *arguments) == 1
        text = capsys.readouterr().err
    except SystemExit as stop:
        text = str(stop)
    assert message in text
    with pytest.raises(SystemExit):
        tool.parse(['any', '--methods', 'magic'])
    with pytest.raises(SystemExit):
        tool.parse(['any', '--repeats', '0'])
    (tmp_path / 'file').write_text('x')
    assert run(tmp_path, '--out', str(tmp_path / 'file')) == 1
    assert str(tmp_path / 'file') in capsys.readouterr().err


def test_a_setting_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'build', lambda *args: segmenter())
    measure, calls = tool._measure, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError('out of memory')
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(tool, '_measure', failing)
    assert run(tmp_path, '--keeps', '0.3', '0.5', '0.7', '0.9') == 130
    assert [row['keep'] for row in table(tmp_path)] == ['1.0', '0.3', '0.7']
    assert 'keep 0.5 is left out: RuntimeError: out of memory' in capsys.readouterr().out


def test_a_run_without_a_wish_recommends_and_succeeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'build', lambda *args: segmenter())
    assert run(tmp_path, '--keeps', '1.0') == 0
    assert 'no setting reaches' not in capsys.readouterr().out


def test_tome_in_every_block_is_swept_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'build', lambda *args: segmenter())
    assert run(tmp_path, '--methods', 'tome_every_block') == 0
    assert 'every_block=True' in capsys.readouterr().out


def test_pictures_are_normalized_as_the_model_says(tmp_path):
    import timm
    from PIL import Image

    half = timm.create_model('vit_tiny_patch16_224.augreg_in21k', pretrained=False)
    assert tool.normalization(torch.nn.Sequential(half)) == ((0.5,) * 3, (0.5,) * 3)
    assert tool.normalization(torch.nn.Linear(2, 2)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    Image.new('RGB', (30, 20), (255, 255, 255)).save(tmp_path / 'white.png')
    image = tool.pictures(str(tmp_path), 1, 16, ((0.5,) * 3, (0.5,) * 3))
    torch.testing.assert_close(image, torch.ones(1, 3, 16, 16))


def test_every_option_is_explained_with_its_default(monkeypatch):
    import argparse

    seen = []
    add = argparse.ArgumentParser.add_argument

    def noted(self, *names, **options):
        seen.append((names, options))
        return add(self, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, 'add_argument', noted)
    tool.parse(['any'])
    options = [(names, each.get('help', '')) for names, each in seen if names[0].startswith('--')]
    assert len(options) == 13
    assert [names for names, text in options if 'default' not in text] == []
