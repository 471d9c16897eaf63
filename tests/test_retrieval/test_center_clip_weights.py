# SPDX-License-Identifier: Apache-2.0
"""Weights of CenterCLIP: folders of transformers, open_clip, checkpoints of others."""

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from _center_clip import CLUSTERING, make

from clusterplug.registry import MODELS
from clusterplug.retrieval import (
    OpenCLIPEncoders,
    TransformersEncoders,
    VideoTextPreprocessor,
    clip_from_openai,
    read_state_dict,
)


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
