# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP's loss, heads and model: closed forms, two ranks, weights of OpenAI and open_clip, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from _center_clip import CLUSTERING, CONFIG, batch, make, model_config

from clusterplug.registry import MODELS
from clusterplug.retrieval import (
    CenterCLIP,
    MeanPooling,
    SequenceTransformer,
    VideoTextSample,
    masked_mean,
    symmetric_contrast,
)
from clusterplug.testing import run_gloo


class TestLoss:
    def test_closed_form_for_equal_embeddings(self):
        """log(1 + sum over the others of exp(s (cos - 1))), averaged."""
        features = F.normalize(torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        scale = torch.tensor(2.0, dtype=torch.float64)
        cosines = features @ features.T
        others = (math.e**2 * (cosines - 1)).exp().masked_fill(torch.eye(6, dtype=torch.bool), 0)
        expected = (1 + others.sum(1)).log().mean()
        torch.testing.assert_close(symmetric_contrast(features, features, scale), expected)

    def test_by_a_loop_and_symmetric(self):
        generator = torch.Generator().manual_seed(1)
        text, video = (torch.randn(5, 8, dtype=torch.float64, generator=generator) for _ in range(2))
        t, v, total = F.normalize(text), F.normalize(video), 0.0
        for i in range(5):
            own = math.exp(math.e * float(t[i] @ v[i]))
            total -= math.log(own / sum(math.exp(math.e * float(t[i] @ v[j])) for j in range(5)))
            total -= math.log(own / sum(math.exp(math.e * float(t[j] @ v[i])) for j in range(5)))
        one = torch.tensor(1.0, dtype=torch.float64)
        assert symmetric_contrast(text, video, one).item() == pytest.approx(total / 10)
        torch.testing.assert_close(symmetric_contrast(text, video, one), symmetric_contrast(video, text, one))

    def test_gradcheck(self):
        text, video = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(symmetric_contrast, (text, video, scale))

    def test_half_precision_is_computed_in_fp32(self):
        text = torch.randn(4, 8).bfloat16()
        found = symmetric_contrast(text, text, torch.tensor(4.6))
        torch.testing.assert_close(found, symmetric_contrast(text.float(), text.float(), torch.tensor(4.6)))
        assert found.dtype == torch.float32

    def test_bad_input(self):
        with pytest.raises(ValueError, match='both have shape'):
            symmetric_contrast(torch.ones(2, 3), torch.ones(3, 3), torch.tensor(1.0))


def part_of_a_step(rank, world_size):
    """Loss and gradients of this rank's half of a batch, averaged over ranks as DDP does."""
    import torch.distributed as dist

    torch.manual_seed(0)
    model = MODELS.build(model_config(head=dict(type='clusterplug.SequenceTransformer', embed_dims=32, num_blocks=1)))
    whole = batch()
    part = {name: value.chunk(world_size)[rank] for name, value in whole.items()}
    loss = model(part, mode='loss')['loss_contrast']
    loss.backward()
    values = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for value in values:
        dist.all_reduce(value)
        value /= world_size
    return values


def test_two_ranks_equal_one_process():
    torch.manual_seed(0)
    model = MODELS.build(model_config(head=dict(type='clusterplug.SequenceTransformer', embed_dims=32, num_blocks=1)))
    loss = model(batch(), mode='loss')['loss_contrast']
    loss.backward()
    expected = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for values in run_gloo(part_of_a_step, 2):
        assert len(values) == len(expected) > 100
        for ours, theirs in zip(values, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class TestHeads:
    def test_masked_mean_by_hand(self):
        features = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [torch.nan, 1.0]]])
        mask = torch.tensor([[True, True, False]])
        torch.testing.assert_close(MeanPooling()(features, mask), torch.full((1, 2), 0.5**0.5))
        assert masked_mean(features, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0]]

    def test_sequence_transformer_ignores_masked_segments(self):
        head = SequenceTransformer(32, num_blocks=2).eval()
        features = torch.randn(2, 5, 32)
        mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
        full = head(features, mask)
        torch.testing.assert_close(full[1:], head(features[1:, :3], mask[1:, :3]))
        nothing = head(features, torch.zeros(2, 5, dtype=torch.bool))
        assert (nothing == 0).all()

    def test_sequence_transformer_starts_as_the_text_encoder(self):
        model = make(head=dict(type='clusterplug.SequenceTransformer', embed_dims=32, num_blocks=2, num_heads=2))
        layer, block = model.encoders.clip.text_model.encoder.layers[1], model.head.blocks[1]
        x = torch.randn(1, 5, 32)
        with torch.no_grad():
            theirs = layer(x, attention_mask=None)
            ours = block(x, torch.zeros(1, 5, dtype=torch.bool))
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(
            model.head.positions[:12], model.encoders.clip.text_model.embeddings.position_embedding.weight
        )

    def test_order_matters_to_the_sequence_transformer_alone(self):
        features, mask = torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool)
        head = SequenceTransformer(32, num_blocks=1).eval()
        torch.nn.init.normal_(head.positions)
        assert not torch.allclose(head(features, mask), head(features.flip(1), mask))
        torch.testing.assert_close(MeanPooling()(features, mask), MeanPooling()(features.flip(1), mask))

    def test_bad_input(self):
        with pytest.raises(ValueError, match='num_heads must divide'):
            SequenceTransformer(30, num_heads=4)
        with pytest.raises(ValueError, match='at most 3 segments'):
            SequenceTransformer(32, max_segments=3)(torch.zeros(1, 4, 32), torch.ones(1, 4, dtype=torch.bool))


class TestModel:
    def test_unclustered_model_is_clip(self):
        model, inputs = make(clustering=None).eval(), batch()
        clip = model.encoders.clip
        with torch.no_grad():
            text, video = model(inputs)
            frames = clip.get_image_features(pixel_values=inputs['frames'].flatten(0, 1)).pooler_output
            frames = frames.unflatten(0, (4, 6))
            expected = F.normalize(F.normalize(frames, dim=-1)[0, :4].mean(0), dim=-1)
        torch.testing.assert_close(video[0], expected)
        torch.testing.assert_close(text, clip.get_text_features(input_ids=inputs['tokens']).pooler_output)

    def test_nothing_reduced_equals_unclustered(self):
        plain, same = make(clustering=None).eval(), make(clustering=dict(after_block=2, segments=6, clusters=16)).eval()
        inputs = batch()
        inputs['frame_mask'][:] = True
        with torch.no_grad():
            for ours, theirs in zip(same(inputs), plain(inputs)):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert list(plain.state_dict()) == list(same.state_dict())

    def test_masked_frames_do_not_matter(self):
        model, inputs = make().eval(), batch()
        inputs['frame_mask'][0] = torch.tensor([True, True, True, False, False, False])
        with torch.no_grad():
            before = model(inputs)[1]
            inputs['frames'][0, 3:] = 7.0
            after = model(inputs)[1]
        torch.testing.assert_close(before, after)

    def test_predict_with_several_captions(self):
        model, inputs = make().eval(), batch()
        inputs['num_captions'] = torch.tensor([1, 3])
        inputs |= {name: inputs[name][:2] for name in ('frames', 'frame_mask')}
        samples = [VideoTextSample(metainfo=dict(video_id=name)) for name in 'ab']
        with torch.no_grad():
            found = model(inputs, samples, mode='predict')
        assert [tuple(sample.text_features.shape) for sample in found] == [(1, 32), (3, 32)]
        torch.testing.assert_close(found[0].video_feature.norm(), torch.tensor(1.0))

    def test_scale_is_kept_in_its_range(self):
        model = make()
        for value, expected in ((9.0, 4.6052), (-3.0, 0.1)):
            torch.nn.init.constant_(model.encoders.logit_scale, value)
            losses = model(batch(), mode='loss')
            assert losses['logit_scale'].item() == pytest.approx(math.exp(expected), rel=1e-5)
            losses['loss_contrast'].backward()
            assert model.encoders.logit_scale.grad is not None

    @pytest.mark.parametrize('reduction', ['kmedoids', 'spectral', 'sparse', 'pooling', 'token_shift'])
    def test_every_reduction_trains_a_step(self, reduction):
        options = dict(clusters=None) if reduction == 'pooling' else {}
        model = make(clustering=CLUSTERING | options | dict(reduction=reduction))
        model(batch(), mode='loss')['loss_contrast'].backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert without == []

    def test_bad_input(self):
        model = make()
        with pytest.raises(ValueError, match='mode must be'):
            model(batch(), mode='train')
        with pytest.raises(ValueError, match='one caption for each video'):
            model(batch() | dict(tokens=torch.ones(5, 12, dtype=torch.int64)), mode='loss')
        with pytest.raises(ValueError, match='at most 12 tokens'):
            model(batch() | dict(tokens=torch.ones(4, 13, dtype=torch.int64)), mode='loss')
        with pytest.raises(ValueError, match='scale_range'):
            CenterCLIP(model_config()['encoders'], scale_range=(2, 1))
        with pytest.raises(ValueError, match='tokens must be finite'):
            model(batch() | dict(frames=torch.full((4, 6, 3, 32, 32), torch.nan)), mode='loss')

    def test_checkpoint_of_another_width_is_refused(self, tmp_path):
        from mmengine.runner import load_checkpoint

        other = dict(CONFIG, projection_dim=16)
        encoders = dict(type='clusterplug.TransformersEncoders', config=other)
        torch.save(dict(state_dict=MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders)).state_dict()),
                   tmp_path / 'other.pth')  # fmt: skip
        with pytest.raises(ValueError, match=r'visual_projection.weight \(16, 32\) instead of \(32, 32\)'):
            load_checkpoint(make(), str(tmp_path / 'other.pth'))
