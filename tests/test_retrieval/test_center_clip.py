# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP's loss, heads and model: closed forms, two ranks, weights of OpenAI and open_clip, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug.registry import MODELS
from clusterplug.retrieval import (
    CenterCLIP,
    MeanPooling,
    OpenCLIPEncoders,
    SequenceTransformer,
    TransformersEncoders,
    VideoTextPreprocessor,
    VideoTextSample,
    clip_from_openai,
    masked_mean,
    read_state_dict,
    symmetric_contrast,
)
from clusterplug.testing import run_gloo

SIZES = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2)
CONFIG = dict(
    vision_config=SIZES | dict(image_size=32, patch_size=8),
    text_config=SIZES | dict(vocab_size=60, max_position_embeddings=12, num_hidden_layers=2),
    projection_dim=32,
)
CLUSTERING = dict(after_block=2, segments=2, clusters=7)


def model_config(clustering=CLUSTERING, head=None):
    encoders = dict(type='clusterplug.TransformersEncoders', config=CONFIG, clustering=clustering)
    return dict(type='clusterplug.CenterCLIP', encoders=encoders, head=head)


def make(**options):
    torch.manual_seed(0)
    return MODELS.build(model_config(**options))


def batch(pairs=4, frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 59, (pairs, 12), generator=generator)
    tokens[:, 8] = 59  # the highest id ends a text
    mask = torch.ones(pairs, frames, dtype=torch.bool)
    mask[0, 4:] = False
    return dict(frames=torch.randn(pairs, frames, 3, 32, 32, generator=generator), frame_mask=mask, tokens=tokens)


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


class TestWeights:
    @pytest.fixture
    def theirs(self):
        pytest.importorskip('open_clip', reason='needs open_clip: pip install open-clip-torch')
        from open_clip.model import CLIP

        torch.manual_seed(0)
        vision = dict(image_size=32, patch_size=8, width=64, layers=3, head_width=64)
        text = dict(context_length=10, vocab_size=50, width=64, heads=1, layers=2)
        return CLIP(24, vision, text, quick_gelu=True).eval()

    def check(self, clip, theirs):
        images, tokens = torch.randn(3, 3, 32, 32), torch.randint(0, 49, (3, 10))
        tokens[:, 6] = 49
        clip.eval()
        with torch.no_grad():
            ours = clip.get_image_features(pixel_values=images).pooler_output
            torch.testing.assert_close(ours, theirs.encode_image(images), rtol=1e-4, atol=1e-5)
            ours = clip.get_text_features(input_ids=tokens).pooler_output
            torch.testing.assert_close(ours, theirs.encode_text(tokens), rtol=1e-4, atol=1e-5)

    def test_openai_naming_gives_the_same_features(self, theirs):
        self.check(clip_from_openai(theirs.state_dict()), theirs)

    @pytest.mark.parametrize('kind', ['plain', 'prefixed', 'safetensors', 'jit'])
    def test_files(self, theirs, tmp_path, kind):
        state = dict(theirs.state_dict())
        path = tmp_path / 'weights.pt'
        if kind == 'safetensors':
            from safetensors.torch import save_file

            path = tmp_path / 'weights.safetensors'
            save_file(state, path)
        elif kind == 'jit':
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                example = (torch.zeros(1, 3, 32, 32), torch.ones(1, 10).long())
                torch.jit.save(torch.jit.trace(_Holder(theirs), example), path)
        elif kind == 'prefixed':
            extra = {'module.sim.weight': torch.zeros(2)}
            torch.save({f'module.clip.{name}': value for name, value in state.items()} | extra, path)
        else:
            torch.save(state, path)
        encoders = TransformersEncoders(pretrained=str(path))
        self.check(encoders.clip, theirs)
        assert encoders.embed_dims == 24

    def test_incomplete_weights(self, theirs, tmp_path):
        state = theirs.state_dict()
        state.pop('ln_final.weight')
        with pytest.raises(ValueError, match=r'missing: .*final_layer_norm'):
            clip_from_openai(state)
        torch.save({'a': torch.zeros(1)}, tmp_path / 'a.pt')
        with pytest.raises(ValueError, match='OpenAI naming'):
            read_state_dict(tmp_path / 'a.pt')
        with pytest.raises(FileNotFoundError, match='no file'):
            read_state_dict(tmp_path / 'b.pt')

    def test_weights_are_data(self, theirs, tmp_path):
        """A TorchScript archive of code that would run, and states that are no CLIP, end in a ValueError."""

        class Running(torch.nn.Module):
            def forward(self, x):
                return x

            @torch.jit.export
            def __getstate__(self):
                return (torch.ones(1), self.training)

            @torch.jit.export
            def __setstate__(self, state: tuple[torch.Tensor, bool]):
                self.training = bool(1 / 0)

        torch.jit.script(Running()).save(str(tmp_path / 'x.pt'))
        for build in (
            lambda: read_state_dict(tmp_path / 'x.pt'),
            lambda: TransformersEncoders(pretrained=str(tmp_path / 'x.pt')),
            lambda: OpenCLIPEncoders('ViT-B-32', pretrained=str(tmp_path / 'x.pt')),
        ):
            with pytest.raises(ValueError, match=r'x\.pt must be a checkpoint'):
                build()
        (tmp_path / 'folder').mkdir()
        torch.jit.script(Running()).save(str(tmp_path / 'folder' / 'pytorch_model.bin'))
        with pytest.raises(ValueError, match='TorchScript archive'):
            TransformersEncoders(pretrained=str(tmp_path / 'folder'))
        for name in (
            'positional_embedding',
            'token_embedding.weight',
            'visual.transformer.resblocks.0.mlp.c_fc.weight',
        ):
            state = theirs.state_dict()
            state.pop(name)
            with pytest.raises(ValueError, match='must hold a whole CLIP'):
                clip_from_openai(state)
        torch.save({'state_dict': [1, 2]}, tmp_path / 'list.pt')
        with pytest.raises(ValueError, match='OpenAI naming'):
            read_state_dict(tmp_path / 'list.pt')

    @pytest.mark.slow
    @pytest.mark.parametrize('wrapped', [False, True])
    def test_open_clip_reads_checkpoints_and_archives(self, tmp_path, wrapped):
        open_clip = pytest.importorskip('open_clip', reason='needs open_clip')
        torch.manual_seed(0)
        theirs = open_clip.create_model('ViT-S-32').state_dict()
        content = dict(state_dict={f'module.{name}': value for name, value in theirs.items()}, epoch=1)
        torch.save(content if wrapped else theirs, tmp_path / 'x.pt')
        ours = OpenCLIPEncoders('ViT-S-32', pretrained=str(tmp_path / 'x.pt')).clip.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    def test_folder_of_transformers(self, tmp_path):
        clip = make(clustering=None).encoders.clip
        clip.save_pretrained(tmp_path / 'clip')
        loaded = TransformersEncoders(pretrained=str(tmp_path / 'clip'), clustering=CLUSTERING)
        assert all(torch.equal(a, b) for a, b in zip(clip.state_dict().values(), loaded.clip.state_dict().values()))

    def test_public_name_without_a_network(self, monkeypatch):
        monkeypatch.setenv('HF_HUB_OFFLINE', '1')
        with pytest.raises(FileNotFoundError, match='hf download openai/clip-vit-base-patch32'):
            TransformersEncoders(pretrained='openai/clip-vit-base-patch32')
        with pytest.raises(ValueError, match='either pretrained'):
            TransformersEncoders()

    def test_open_clip(self):
        pytest.importorskip('open_clip', reason='needs open_clip')
        with pytest.raises(ValueError, match='list_models'):
            OpenCLIPEncoders('ViT-X')
        with pytest.raises(FileNotFoundError, match='download_pretrained'):
            OpenCLIPEncoders('ViT-B-32', pretrained='/nowhere.pt')

    @pytest.mark.slow
    def test_open_clip_in_the_model(self):
        pytest.importorskip('open_clip', reason='needs open_clip')
        encoders = dict(type='clusterplug.OpenCLIPEncoders', model='ViT-B-32-quickgelu', clustering=dict(after_block=6))
        head = dict(type='clusterplug.SequenceTransformer', num_blocks=2)
        model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders, head=head)).eval()
        assert torch.equal(model.head.blocks[1].ln_1.weight, model.encoders.clip.transformer.resblocks[1].ln_1.weight)
        tokens = torch.tensor([[49406, 320, 49407, 0]])
        inputs = dict(
            frames=torch.randn(1, 12, 3, 224, 224), frame_mask=torch.ones(1, 12, dtype=torch.bool), tokens=tokens
        )
        with torch.no_grad():
            text, video = model(inputs)
        assert text.shape == video.shape == (1, 512)


class _Holder(torch.nn.Module):
    """Puts CLIP's weights at the top, where OpenAI's archives have them."""

    def __init__(self, clip):
        super().__init__()
        for name, child in clip.named_children():
            setattr(self, name, child)
        for name, parameter in clip.named_parameters(recurse=False):
            setattr(self, name, parameter)

    def forward(self, image, text):
        return self.visual(image), self.token_embedding(text) + self.positional_embedding, self.logit_scale


def test_preprocessor():
    frames = [torch.full((2, 3, 4, 4), 122, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]
    masks = [torch.ones(2, dtype=torch.bool)] * 2
    tokens = [torch.ones(1, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64)]
    data = dict(inputs=dict(frames=frames, frame_mask=masks, tokens=tokens), data_samples=[1, 2])
    made = VideoTextPreprocessor()(data)
    corner = made['inputs']['frames'][:, 0, :, 0, 0]
    assert corner[0, 0].item() == pytest.approx((122 / 255 - 0.48145466) / 0.26862954, abs=1e-4)
    assert corner[1, 2].item() == pytest.approx(-0.40821073 / 0.27577711, abs=1e-4)
    assert made['inputs']['num_captions'].tolist() == [1, 3]
    assert len(made['inputs']['tokens']) == 4
    data['inputs']['frames'] = [frames[0], frames[1][:, :, :3]]
    with pytest.raises(ValueError, match='one size'):
        VideoTextPreprocessor()(data)
