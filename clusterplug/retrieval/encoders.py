# SPDX-License-Identifier: Apache-2.0
"""Text and video encoders of CenterCLIP: CLIP of transformers and open_clip, with tokens clustered inside."""

import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterplug import patch
from clusterplug.core.tensor_files import is_torchscript, load_tensors
from clusterplug.functional.tokens import split_segments
from clusterplug.registry import MODELS
from clusterplug.retrieval.openai_weights import NO_WEIGHTS, clip_from_openai, read_state_dict


class ClipEncoders(nn.Module, ABC):
    """What both libraries' CLIP have in common here: frames in, segments out; token ids in, features out.

    Args:
        clip: The model.
        clustering: Arguments of ``patch.apply(clip, method='centerclip', ...)``; None keeps frames.
        pretrained: Whether the weights were loaded; otherwise they are random. Defaults to False.

    Attributes:
        logit_scale (Parameter): Logarithm of the scale, CLIP's own.
        embed_dims (int): Channels of the features.
    """

    def __init__(self, clip: nn.Module, clustering: dict | None, pretrained: bool = False):
        super().__init__()
        self.clip, self.pretrained = clip, pretrained
        self.clustering = dict(clustering) if clustering else None
        if self.clustering:
            patch.apply(clip, method='centerclip', **self.clustering)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale."""
        return self.clip.logit_scale

    def encode_video(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the segments of videos.

        Args:
            frames: (B, T, 3, H, W) normalized.
            mask: (B, T) bool, True = a frame of the video.

        Returns:
            (B, S, E), and (B, S) bool, True where a segment holds a frame of the video; S = T without clustering.
        """
        return self._encode_frames(frames, mask, self.encode_images)

    def encode_patches(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the patch tokens of videos; where clustering is on, of those it kept.

        Args:
            frames: (B, T, 3, H, W) normalized.
            mask: (B, T) bool, True = a frame of the video.

        Returns:
            (B, S, P, E), and (B, S) bool as :meth:`encode_video`.

        Raises:
            ValueError: The library's model has no projection of patches into the space of texts.
        """
        return self._encode_frames(frames, mask, self.encode_image_patches)

    def _encode_frames(self, frames: Tensor, mask: Tensor, encode) -> tuple[Tensor, Tensor]:
        if frames.dim() != 5:
            raise ValueError(f'frames must have shape (videos, frames, 3, H, W), got {tuple(frames.shape)}')
        if not self.clustering:
            return encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), mask
        with patch.frame_mask(self.clip, None if torch.compiler.is_compiling() else mask) as session:
            features = encode(frames)
        segments = mask
        if not session.shifts:
            for stage in session.stages.values():
                parts, real = split_segments(segments, stage.layer.num_segments)
                segments = (parts if real is None else parts & real).any(-1)
        return features.unflatten(0, (len(frames), -1)), segments

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Features of images: (N, 3, H, W) -> (N, E)."""

    def encode_image_patches(self, images: Tensor) -> Tensor:
        """Features of the patches of images: (N, 3, H, W) -> (N, P, E)."""
        raise ValueError(f"tokens='patches' needs TransformersEncoders of a CLIP, got {type(self).__name__}")

    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the tokens of texts: (N, L) -> (N, L, E), and which are words, start or end (N, L)."""
        raise ValueError(f"tokens='words' needs TransformersEncoders of a CLIP, got {type(self).__name__}")

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of texts: (N, L) int64 token ids -> (N, E)."""

    @abstractmethod
    def text_blocks(self) -> tuple[list[dict], Tensor]:
        """State dicts of the text encoder's blocks by CLIP's own names, and its positions (L, width)."""


@MODELS.register_module()
class TransformersEncoders(ClipEncoders):
    """CLIP or SigLIP of transformers.

    Args:
        pretrained: Folder of ``save_pretrained``, name of a public checkpoint that is in the cache of
            this machine (``openai/clip-vit-base-patch32``), or a file with weights in OpenAI's naming
            (``ViT-B-32.pt``).
        config: For a model with random weights: ``text_config``, ``vision_config`` and further
            arguments of ``CLIPConfig``.
        clustering: ``start``, ``num_segments``, ``num_clusters``, ``reduction`` ..., see
            :func:`clusterplug.patch.apply`. None: the unclustered model.
        gradient_checkpointing: Save memory in training. Defaults to False.
        download: Fetch a public checkpoint that is not on this machine. Defaults to False.

    Raises:
        ValueError: Not exactly one of ``pretrained`` and ``config``.
        FileNotFoundError: The weights are not on this machine.

    Example:
        >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        >>> vision, text = sizes | dict(image_size=32, patch_size=8), sizes | dict(vocab_size=100)
        >>> config = dict(vision_config=vision, text_config=text, projection_dim=16)
        >>> encoders = TransformersEncoders(config=config, clustering=dict(start=1, num_segments=2, num_clusters=10))
        >>> features, mask = encoders.encode_video(torch.randn(1, 4, 3, 32, 32), torch.ones(1, 4, dtype=torch.bool))
        >>> features.shape, mask.tolist()
        (torch.Size([1, 2, 16]), [[True, True]])
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict | None = None,
        clustering: dict | None = None,
        gradient_checkpointing: bool = False,
        download: bool = False,
    ):
        if (pretrained is None) == (config is None):
            raise ValueError('pass either pretrained (weights) or config (sizes of a model with random weights)')
        clip = _build(config) if pretrained is None else _load(pretrained, download)
        super().__init__(clip, clustering, pretrained is not None)
        if gradient_checkpointing:
            clip.gradient_checkpointing_enable()

    @property
    def embed_dims(self) -> int:
        """Channels of the features."""
        config = self.clip.config
        return getattr(config, 'projection_dim', None) or config.text_config.hidden_size

    def encode_images(self, images: Tensor) -> Tensor:
        """Features of images: (N, 3, H, W) -> (N, E)."""
        return _pooled(self.clip.get_image_features(pixel_values=images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of texts: (N, L) int64 token ids -> (N, E)."""
        self._check_length(tokens)
        return _pooled(self.clip.get_text_features(input_ids=tokens))

    def encode_image_patches(self, images: Tensor) -> Tensor:
        """Features of the patches of images, without the class token: (N, 3, H, W) -> (N, P, E)."""
        if not hasattr(self.clip, 'visual_projection'):
            return super().encode_image_patches(images)
        tower = self.clip.vision_model
        tokens = tower(pixel_values=images).last_hidden_state[:, 1:]
        return self.clip.visual_projection(tower.post_layernorm(tokens))

    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the tokens of texts: (N, L) -> (N, L, E), and which are words, start or end (N, L)."""
        if not hasattr(self.clip, 'text_projection'):
            return super().encode_words(tokens)
        self._check_length(tokens)
        features = self.clip.text_projection(self.clip.text_model(input_ids=tokens).last_hidden_state)
        end = self.clip.config.text_config.eos_token_id
        # transformers' own rule: configs of the first CLIPs name 2, though their end has the largest id
        last = tokens.argmax(1) if end == 2 else (tokens == end).int().argmax(1)
        return features, torch.arange(tokens.shape[1], device=tokens.device) <= last[:, None]

    def _check_length(self, tokens: Tensor) -> None:
        limit = self.clip.config.text_config.max_position_embeddings
        if tokens.shape[1] > limit:
            raise ValueError(f'texts must have at most {limit} tokens, got {tokens.shape[1]}; lower max_words')

    def text_blocks(self) -> tuple[list[dict], Tensor]:
        """State dicts of the text encoder's blocks by CLIP's own names, and its positions (L, width)."""
        tower = self.clip.text_model
        return [_own_names(layer) for layer in tower.encoder.layers], tower.embeddings.position_embedding.weight


@MODELS.register_module()
class OpenCLIPEncoders(ClipEncoders):
    """CLIP of open_clip.

    Args:
        model: Name of open_clip, such as ``'ViT-B-32-quickgelu'`` for OpenAI's weights.
        pretrained: File with weights, read as data; OpenAI's archives count. None: random weights.
        clustering: See :class:`TransformersEncoders`.
        gradient_checkpointing: Defaults to False.

    Raises:
        ModuleNotFoundError: open_clip is missing.
        ValueError: open_clip knows no such model.
        FileNotFoundError: There is no such file.

    Example:
        >>> OpenCLIPEncoders('ViT-B-32', clustering=dict(start=6)).embed_dims  # doctest: +SKIP
        512
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        clustering: dict | None = None,
        gradient_checkpointing: bool = False,
    ):
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('OpenCLIPEncoders needs: pip install open-clip-torch') from error
        if model not in open_clip.list_models():
            raise ValueError(f'model must be a name of open_clip.list_models(), got {model!r}')
        if pretrained is not None and not Path(pretrained).expanduser().is_file():
            raise FileNotFoundError(
                f'pretrained must be a file with weights, got {pretrained}, which does not exist; download it with '
                f'open_clip.download_pretrained on a machine with a network and copy it here'
            )
        super().__init__(_load_open_clip(model, pretrained), clustering, pretrained is not None)
        clip = self.clip
        if gradient_checkpointing:
            clip.set_grad_checkpointing()

    @property
    def embed_dims(self) -> int:
        """Channels of the features."""
        projection = self.clip.text_projection
        return projection.shape[1] if isinstance(projection, Tensor) else projection.out_features

    def encode_images(self, images: Tensor) -> Tensor:
        """Features of images: (N, 3, H, W) -> (N, E)."""
        return self.clip.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features of texts: (N, L) int64 token ids -> (N, E); shorter texts are filled up with zeros."""
        limit = self.clip.context_length
        if tokens.shape[1] > limit:
            raise ValueError(f'texts must have at most {limit} tokens, got {tokens.shape[1]}; lower max_words')
        return self.clip.encode_text(torch.nn.functional.pad(tokens, (0, limit - tokens.shape[1])))

    def text_blocks(self) -> tuple[list[dict], Tensor]:
        """State dicts of the text encoder's blocks by CLIP's own names, and its positions (L, width)."""
        return [block.state_dict() for block in self.clip.transformer.resblocks], self.clip.positional_embedding


@MODELS.register_module()
class FeatureEncoders(nn.Module):
    """Projections over features that were computed before, in the place of encoders: frames and texts come as vectors.

    Args:
        video_channels: Channels of a frame's feature.
        text_channels: Channels of a text's feature.
        embed_dims: Channels of the common space. Defaults to 256.
        dropout: Of the features, in training. Defaults to 0.
        logit_scale: Logarithm of the first scale. Defaults to that of CLIP, log(1 / 0.07).

    Example:
        >>> encoders = FeatureEncoders(768, 384)
        >>> encoders.encode_video(torch.randn(2, 12, 768), torch.ones(2, 12, dtype=torch.bool))[0].shape
        torch.Size([2, 12, 256])
    """

    def __init__(
        self,
        video_channels: int,
        text_channels: int,
        embed_dims: int = 256,
        dropout: float = 0.0,
        logit_scale: float = 2.6593,
    ):
        super().__init__()
        self.embed_dims = embed_dims
        self.video = nn.Sequential(
            nn.LayerNorm(video_channels), nn.Dropout(dropout), nn.Linear(video_channels, embed_dims)
        )
        self.text = nn.Sequential(
            nn.LayerNorm(text_channels), nn.Dropout(dropout), nn.Linear(text_channels, embed_dims)
        )
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))

    def encode_video(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, T, C) to (B, T, E); the mask stays."""
        return self.video(frames), mask

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Project (N, C) to (N, E)."""
        return self.text(tokens)

    def text_blocks(self) -> tuple[list[dict], Tensor]:
        """None: there is no text encoder."""
        return [], self.logit_scale.new_zeros(0, 0)


def _build(config: dict) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = {'eos_token_id': 2, 'bos_token_id': 0, 'pad_token_id': 0} | dict(config.get('text_config', {}))
    return CLIPModel(
        CLIPConfig(**{**config, 'text_config': text, 'vision_config': dict(config.get('vision_config', {}))})
    )


def _load_open_clip(model: str, pretrained: str | None) -> nn.Module:
    import open_clip

    if pretrained is None or Path(pretrained).suffix in ('.npz', '.safetensors'):  # no code in either
        return open_clip.create_model(model, pretrained=pretrained and str(Path(pretrained).expanduser()))
    from safetensors.torch import save_file

    # open_clip's own way of reading would hand TorchScript to torch's loader, which runs code; its renaming is kept.
    state = load_tensors(Path(pretrained).expanduser())
    state = state.get('state_dict', state)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{pretrained} must hold a state dict of tensors; give a checkpoint of open_clip or OpenAI')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'weights.safetensors')
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and key not in NO_WEIGHTS}
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)
        return open_clip.create_model(model, pretrained=str(path))


def _load(pretrained: str | os.PathLike, download: bool) -> nn.Module:
    path = Path(pretrained).expanduser()
    if path.is_file():
        return clip_from_openai(read_state_dict(path))
    from transformers import AutoModel

    for file in [*path.glob('*.bin'), *path.glob('*.pt')] if path.is_dir() else []:
        if is_torchscript(file):
            raise ValueError(
                f'{file} is a TorchScript archive, which can run code; give it as a file and not in a folder'
            )
    try:
        clip = AutoModel.from_pretrained(path if path.is_dir() else str(pretrained), local_files_only=not download)
    except OSError as error:
        raise FileNotFoundError(
            f'no CLIP weights {pretrained!r} on this machine. Give a folder of save_pretrained or a file in OpenAI '
            f'naming; or fetch a public checkpoint once with: hf download {pretrained}; or set download=True'
        ) from error
    if not hasattr(clip, 'get_image_features') or not hasattr(clip, 'get_text_features'):
        raise ValueError(f'{pretrained!r} must be a model of images and texts, as CLIP is, got {type(clip).__name__}')
    return clip


def _pooled(output) -> Tensor:
    # A tensor until transformers 4, an output with the projected feature in its pooled field since 5.
    return output if isinstance(output, Tensor) else output.pooler_output


def _own_names(layer: nn.Module) -> dict[str, Tensor]:
    attention, state = layer.self_attn, {}
    for kind in ('weight', 'bias'):
        parts = [getattr(getattr(attention, f'{name}_proj'), kind) for name in 'qkv']
        state[f'attn.in_proj_{kind}'] = torch.cat(parts)
        for ours, theirs in (
            ('attn.out_proj', attention.out_proj), ('ln_1', layer.layer_norm1), ('ln_2', layer.layer_norm2),
            ('mlp.c_fc', layer.mlp.fc1), ('mlp.c_proj', layer.mlp.fc2),
        ):  # fmt: skip
            state[f'{ours}.{kind}'] = getattr(theirs, kind)
    return state
