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
