# SPDX-License-Identifier: Apache-2.0
"""CLIP state dicts in OpenAI's naming, as OpenAI's files and CLIP4Clip's checkpoints have them, for transformers."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clusterplug.core.tensor_files import load_tensors

_BLOCK = {
    'attn.out_proj': 'self_attn.out_proj',
    'ln_1': 'layer_norm1',
    'ln_2': 'layer_norm2',
    'mlp.c_fc': 'mlp.fc1',
    'mlp.c_proj': 'mlp.fc2',
}
_TOP = {
    'visual.class_embedding': 'vision_model.embeddings.class_embedding',
    'visual.conv1.weight': 'vision_model.embeddings.patch_embedding.weight',
    'visual.positional_embedding': 'vision_model.embeddings.position_embedding.weight',
    'visual.ln_pre': 'vision_model.pre_layrnorm',
    'visual.ln_post': 'vision_model.post_layernorm',
    'token_embedding.weight': 'text_model.embeddings.token_embedding.weight',
    'positional_embedding': 'text_model.embeddings.position_embedding.weight',
    'ln_final': 'text_model.final_layer_norm',
    'logit_scale': 'logit_scale',
}
# Sizes that OpenAI's archives carry beside the weights, and a buffer of open_clip.
NO_WEIGHTS = {'input_resolution', 'context_length', 'vocab_size', 'attn_mask'}


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a state dict from OpenAI's TorchScript archive, a checkpoint or a safetensors file.

    The file is read as data (:func:`~clusterplug.core.tensor_files.load_tensors`): code that it carries does not run.
    Prefixes of wrappers (``module.``, ``clip.``) are taken off, and weights outside CLIP left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds more than tensors and plain values, or no CLIP in OpenAI's naming.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}; give a CLIP checkpoint in OpenAI naming, such as ViT-B-32.pt')
    state = load_tensors(path)
    inner = state.get('state_dict', state)
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)} if isinstance(inner, dict) else {}
    for prefix in ('module.', 'clip.', 'encoders.clip.'):
        if any(key.startswith(f'{prefix}visual.') or key.startswith(f'{prefix}clip.') for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if 'visual.conv1.weight' not in state:
        raise ValueError(
            f'{path} must hold CLIP weights in OpenAI naming (visual.conv1.weight, ...), got keys such as '
            f'{", ".join(list(state)[:3]) or "none"}; vision transformers only, ResNets are not supported'
        )
    return state


def clip_from_openai(state: Mapping[str, Tensor], **options):
    """Build a transformers ``CLIPModel`` from weights in OpenAI's naming; sizes are read off the weights.

    Args:
        state: The state dict.
        **options: Further arguments of ``CLIPModel._from_config``, such as ``attn_implementation``.

    Returns:
        transformers.CLIPModel: In fp32, with fused attention by default.

    Raises:
        ValueError: A weight is missing or has no place in CLIP.

    Example:
        >>> from open_clip.model import CLIP
        >>> vision, text = dict(image_size=32, patch_size=8, width=64, layers=1), dict(context_length=8, width=64)
        >>> theirs = CLIP(24, vision, text | dict(vocab_size=50, heads=1, layers=1), quick_gelu=True)
        >>> clip_from_openai(theirs.state_dict()).config.projection_dim
        24
    """
    from transformers import CLIPModel

    try:
        config = _config(state)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f'the state dict must hold a whole CLIP with a vision transformer, its sizes cannot be read off: '
            f'{type(error).__name__} {error}'
        ) from error
    model = CLIPModel._from_config(config, **options)
    missing, unexpected = model.load_state_dict(_renamed(state), strict=False)
    missing = [key for key in missing if not key.endswith('position_ids')]
    if missing or unexpected:
        raise ValueError(
            f'the state dict must hold a whole CLIP with a vision transformer; missing: {missing[:5]}, without a '
            f'place: {unexpected[:5]}'
        )
    return model


def _config(state: Mapping[str, Tensor]):
    from transformers import CLIPConfig

    width, _, patch, _ = state['visual.conv1.weight'].shape
    side = round((len(state['visual.positional_embedding']) - 1) ** 0.5)
    vocabulary, text_width = state['token_embedding.weight'].shape
    vision = dict(
        hidden_size=width, intermediate_size=len(state['visual.transformer.resblocks.0.mlp.c_fc.weight']),
        num_hidden_layers=_depth(state, 'visual.transformer.'), num_attention_heads=max(1, width // 64),
        patch_size=patch, image_size=patch * side, hidden_act='quick_gelu',
    )  # fmt: skip
    text = dict(
        hidden_size=text_width, intermediate_size=len(state['transformer.resblocks.0.mlp.c_fc.weight']),
        num_hidden_layers=_depth(state, 'transformer.'), num_attention_heads=max(1, text_width // 64),
        max_position_embeddings=len(state['positional_embedding']), vocab_size=vocabulary, hidden_act='quick_gelu',
        # 2 stands for "the highest id of the sequence", OpenAI's rule, in transformers.
        eos_token_id=2, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=state['text_projection'].shape[1])


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    start = f'{prefix}resblocks.'
    return 1 + max(int(key[len(start) :].split('.')[0]) for key in state if key.startswith(start))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        value = value.float()
        if key in NO_WEIGHTS:
            continue
        if key in ('visual.proj', 'text_projection'):
            name = 'visual_projection' if key == 'visual.proj' else key
            renamed[f'{name}.weight'] = value.mT.contiguous()
        elif '.resblocks.' in f'.{key}':
            tower = 'vision_model' if key.startswith('visual.') else 'text_model'
            index, _, name = key.split('resblocks.', 1)[1].partition('.')
            renamed |= _block_weights(f'{tower}.encoder.layers.{index}.', name, value)
        else:
            stem, _, kind = key.rpartition('.')
            renamed[_TOP[key] if key in _TOP else f'{_TOP.get(stem, stem)}.{kind}'] = value
    return renamed


def _block_weights(prefix: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if name.startswith('attn.in_proj_'):
        kind = name.removeprefix('attn.in_proj_')
        return {f'{prefix}self_attn.{part}_proj.{kind}': each for part, each in zip('qkv', value.chunk(3))}
    stem, _, kind = name.rpartition('.')
    return {f'{prefix}{_BLOCK.get(stem, stem)}.{kind}': value}
