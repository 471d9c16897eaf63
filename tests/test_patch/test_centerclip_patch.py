# SPDX-License-Identifier: Apache-2.0
"""CenterCLIP inside CLIP and SigLIP of transformers, open_clip and timm: exact, reversible, trainable."""

import copy
import io
import pickle

import pytest
import torch

pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[vit]')

from clusterplug import patch
from clusterplug.layers import SegmentTokenClustering

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)


def clip_vision():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, projection_dim=24, attn_implementation='sdpa')
    model = CLIPVisionModelWithProjection(config)
    return model, lambda model, x: model(pixel_values=x).image_embeds


def siglip_vision():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=32, patch_size=8, attn_implementation='sdpa'))
    return model, lambda model, x: model(pixel_values=x).pooler_output


def open_clip_model():
    pytest.importorskip('open_clip', reason='needs open_clip: pip install open-clip-torch')
    from open_clip.model import CLIP

    vision = dict(image_size=32, patch_size=8, width=32, layers=4, head_width=16)
    model = CLIP(24, vision, dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1))
    return model, lambda model, x: model.encode_image(x)


def timm_model():
    timm = pytest.importorskip('timm', reason='needs timm')
    model = timm.create_model(
        'vit_tiny_patch16_224', pretrained=False, img_size=32,
        patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=24,
    )  # fmt: skip
    return model, lambda model, x: model(x)


HOSTS = {'clip': clip_vision, 'siglip': siglip_vision, 'open_clip': open_clip_model, 'timm': timm_model}


def make(name):
    torch.manual_seed(0)
    model, run = HOSTS[name]()
    for parameter in model.parameters():  # zero biases and class tokens would hide differences
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), run


def videos(batch=2, frames=6):
    return torch.randn(batch, frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', HOSTS)
class TestHosts:
    def test_identity_when_nothing_is_reduced(self, name):
        model, run = make(name)
        with torch.no_grad():
            plain = run(model, videos().flatten(0, 1))
            patch.apply(model, method='centerclip', after_block=2, segments=6, clusters=16)
            torch.testing.assert_close(run(model, videos()), plain, rtol=0, atol=1e-6)

    def test_equals_the_layer_between_the_blocks_by_hand(self, name):
        model, run = make(name)
        from clusterplug.patch.hosts import find_layout

        layout = find_layout(model)
        seen = []
        handle = layout.blocks[2].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        with torch.no_grad():
            run(model, videos().flatten(0, 1))
            handle.remove()
            layer = SegmentTokenClustering(2, 7, num_prefix=layout.num_prefix)
            wanted = layer(seen[0].unflatten(0, (2, 6))).flatten(0, 1)

            def replace(module, args, kwargs):
                return (wanted, *args[1:]), kwargs

            handle = layout.blocks[2].register_forward_pre_hook(replace, with_kwargs=True)
            expected = run(model, videos().flatten(0, 1))
            handle.remove()
            patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
            assert torch.equal(run(model, videos()), expected)
        assert expected.shape[0] == 4

    def test_reversible_and_state_dict_untouched(self, name):
        model, run = make(name)
        weights = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            plain = run(model, videos().flatten(0, 1))
            patch.apply(model, method='centerclip', after_block=1, segments=3, clusters=5)
            assert list(model.state_dict()) == list(weights)
            assert run(model, videos()).shape[0] == 6
            with pytest.raises(ValueError, match='patched already'):
                patch.apply(model, method='centerclip')
            patch.remove(model)
            assert torch.equal(run(model, videos().flatten(0, 1)), plain)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())

    def test_flat_batches_with_frames_given(self, name):
        model, run = make(name)
        with torch.no_grad():
            patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7, frames=6)
            assert torch.equal(run(model, videos()), run(model, videos().flatten(0, 1)))
            with pytest.raises(ValueError, match='whole videos of 6 frames'):
                run(model, videos()[:1, :5].flatten(0, 1))

    def test_two_stages_and_a_mask(self, name):
        model, run = make(name)
        patch.apply(model, method='centerclip', after_block=(1, 3), segments=(3, 2), clusters=(12, 9))
        mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
        with torch.no_grad(), patch.frame_mask(model, mask) as session:
            assert run(model, videos()).shape[0] == 4
        assert [result.places.shape for result in session.results] == [(2, 3, 12), (2, 2, 9)]
        assert session.results[0].segment_mask.tolist() == [[True, True, True], [True, True, False]]
        assert session.results[1].segment_mask.tolist() == [[True, True], [True, False]]
        with torch.no_grad():  # outside the context no frame is masked
            run(model, videos())
        assert session.results[0].segment_mask.all()

    @pytest.mark.parametrize('reduction', ['spectral', 'sparse', 'pooling', 'token_shift', 'temporal_shift'])
    def test_every_reduction_runs_and_trains(self, name, reduction):
        model, run = make(name)
        patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7, reduction=reduction)
        out = run(model.train(), videos())
        assert out.shape[0] == (12 if 'shift' in reduction else 4)
        out.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_shifts_equal_blocks_written_out():
    model, run = make('clip')
    x = videos()
    from clusterplug.functional.tokens.segment_tokens import shift_channels

    def shift(tokens, front):
        part = tokens.unflatten(0, (2, 6))
        head, rest = part[:, :, :1], part[:, :, 1:]
        parts = [shift_channels(head), rest] if front else [head, shift_channels(rest)]
        return torch.cat(parts, 2).flatten(0, 1)

    for reduction, front in (('token_shift', True), ('temporal_shift', False)):
        vision = model.vision_model
        with torch.no_grad():
            hidden = vision.pre_layrnorm(vision.embeddings(x.flatten(0, 1)))
            for block in vision.encoder.layers:
                hidden = shift(hidden, front)
                hidden = hidden + block.self_attn(block.layer_norm1(hidden))[0]
                if front:
                    hidden = shift(hidden, front)
                hidden = hidden + block.mlp(block.layer_norm2(hidden))
            expected = model.visual_projection(vision.post_layernorm(hidden[:, 0]))
            patch.apply(model, method='centerclip', reduction=reduction)
            torch.testing.assert_close(run(model, x), expected)
            patch.remove(model)


def test_gradient_checkpointing_gives_the_same_gradient():
    gradients = []
    for checkpointing in (False, True):
        model, run = make('clip')
        patch.apply(model, method='centerclip', after_block=(1, 3), segments=(3, 2), clusters=(12, 9))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
        with patch.frame_mask(model, mask):
            loss = run(model, videos()).square().sum()
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_copies_and_pickles_are_patched_on_their_own():
    model, run = make('clip')
    patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
    twin = copy.deepcopy(model)
    loaded = pickle.load(io.BytesIO(pickle.dumps(model)))
    patch.remove(model)
    with torch.no_grad():
        assert run(twin, videos()).shape == run(loaded, videos()).shape == (4, 24)
        assert run(model, videos().flatten(0, 1)).shape == (12, 24)
        with patch.frame_mask(twin, torch.ones(2, 6, dtype=torch.bool)) as session:
            run(twin, videos())
        assert len(session.results) == 1


@pytest.mark.slow
def test_compiles():
    model, run = make('clip')
    patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
    with torch.no_grad():
        expected = run(model, videos())
        compiled = torch.compile(model, backend='eager')
        torch.testing.assert_close(run(compiled, videos()), expected)


def test_autocast_keeps_the_choice_of_tokens():
    model, run = make('clip')
    patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.isfinite(run(model, videos())).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(after_block=4), 'after_block must lie between 0 and 3'),
        (dict(after_block=(2, 1), segments=(3, 2), clusters=(5, 5)), 'rising order'),
        (dict(after_block=(1, 2), segments=(3,)), 'segments must have one number'),
        (dict(after_block=1, start=2), 'takes after_block'),
        (dict(after_block=1, frames=0), 'frames must be an int'),
        (dict(after_block=1, reduction='magic'), 'method must be one of'),
    ],
)
def test_bad_options(options, message):
    model, _ = make('clip')
    with pytest.raises(ValueError, match=message):
        patch.apply(model, method='centerclip', **options)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_one_idea_has_one_word_and_the_names_of_the_docs_stay():
    model, run = make('clip')
    found = []
    for options in (
        dict(after_block=2, segments=3, clusters=5),
        dict(start=2, num_segments=3, num_clusters=5),
        dict(start=torch.tensor([2]).numpy()[0], segments=3, num_clusters=5),
    ):
        patch.apply(model, method='centerclip', **options)
        with torch.no_grad():
            found.append(run(model, videos()))
        patch.remove(model)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_start_0_is_the_first_block_and_empty_is_refused():
    model, run = make('clip')
    patch.apply(model, method='centerclip', start=0, num_segments=3, num_clusters=5)
    assert list(model._clusterplug_patch.stages) == [0]
    with torch.no_grad():
        assert run(model, videos()).shape[0] == 6
    patch.remove(model)
    for options in (dict(start=()), dict(start=4), dict(start=-1), dict(end=0), dict(keep_ratio=0), dict(taps=())):
        with pytest.raises(ValueError, match=r'after_block|centerclip takes'):
            patch.apply(model, method='centerclip', **options)
    for options in (dict(start=1.5), dict(start=True), dict(start=1, num_segments='4'), dict(start=1, clusters=2.0)):
        with pytest.raises(TypeError, match='must be an int'):
            patch.apply(model, method='centerclip', **options)
    with pytest.raises(ValueError, match='two names of one option'):
        patch.apply(model, method='centerclip', start=1, after_block=1)
    with pytest.raises(ValueError, match=r"num_segments, num_clusters, frames.*did you mean 'num_segments'"):
        patch.apply(model, method='centerclip', num_segment=3)


def test_counts_without_a_use_are_told():
    model, _ = make('clip')
    with pytest.warns(UserWarning, match=r'token_shift.*no use for start, num_clusters'):
        patch.apply(model, method='centerclip', start=1, num_clusters=4, reduction='token_shift')
    patch.remove(model)
    with pytest.warns(UserWarning, match=r'pooling.*no use for num_clusters'):
        patch.apply(model, method='centerclip', start=1, num_clusters=4, reduction='pooling')


def test_bad_input():
    model, run = make('clip')
    with pytest.raises(ValueError, match='is not patched'), patch.frame_mask(model, None):
        pass
    patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
    with pytest.raises(ValueError, match='unless frames is set'):
        run(model, videos().flatten(0, 1))
    with pytest.raises(TypeError, match='mask must be a bool'), patch.frame_mask(model, torch.ones(2, 6)):
        pass
    with pytest.raises(ValueError, match='num_segments must lie between'):
        run(model, videos(frames=1))
    with pytest.raises(ValueError, match='takes \\(videos, frames'):
        run(model, torch.zeros(3))


def test_hosts_with_positions_inside_the_blocks_are_refused():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    model = DINOv3ViTModel(DINOv3ViTConfig(**SIZES, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match='rotary'):
        patch.apply(model, method='centerclip', after_block=2, segments=2, clusters=7)
