# SPDX-License-Identifier: Apache-2.0
"""Small transformers of every host, with random weights: name -> (model, image)."""

import pytest
import torch


def _timm(name, size=64, **kwargs):
    import timm

    kwargs = dict(img_size=size, embed_dim=32, depth=4, num_heads=2, num_classes=5) | kwargs
    return timm.create_model(name, pretrained=False, **kwargs)


def _transformers(name, **kwargs):
    import transformers

    base = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64)
    base |= dict(patch_size=8, attn_implementation='sdpa')
    config = getattr(transformers, f'{name}Config')(**(base | kwargs))
    return config


def _vit():
    from transformers import ViTModel

    return ViTModel(_transformers('ViT'))


def _dinov2(registers=False):
    import transformers

    name = 'Dinov2WithRegisters' if registers else 'Dinov2'
    return getattr(transformers, f'{name}Model')(_transformers(name, mlp_ratio=2))


def _dinov2_backbone():
    from transformers import Dinov2Backbone

    return Dinov2Backbone(_transformers('Dinov2', mlp_ratio=2, out_indices=[2, 4], reshape_hidden_states=True))


def _dinov3():
    from transformers import DINOv3ViTModel

    return DINOv3ViTModel(_transformers('DINOv3ViT', num_register_tokens=3))


def _clip():
    from transformers import CLIPVisionModel

    return CLIPVisionModel(_transformers('CLIPVision'))


def _siglip():
    from transformers import SiglipVisionModel

    return SiglipVisionModel(_transformers('SiglipVision'))


def _beit(shared):
    from transformers import BeitModel

    config = _transformers(
        'Beit', use_relative_position_bias=not shared, use_shared_relative_position_bias=shared,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    model = BeitModel(config)
    for name, parameter in model.named_parameters():
        if 'relative_position_bias_table' in name:
            torch.nn.init.normal_(parameter)
    return model


def _dpt():
    from transformers import DPTForDepthEstimation

    config = _transformers(
        'DPT', backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 16, 16], fusion_hidden_size=16,
        reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False,
    )  # fmt: skip
    return DPTForDepthEstimation(config)


def _depth_anything():
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    backbone = _transformers(
        'Dinov2', mlp_ratio=2, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False
    )
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, neck_hidden_sizes=[8, 16, 16, 16], fusion_hidden_size=16,
        reassemble_hidden_size=32, head_hidden_size=8,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(config)


def _sam():
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = _transformers(
        'SamVision',
        window_size=3,
        global_attn_indexes=[1, 3],
        output_channels=8,
        num_pos_feats=4,
        mlp_dim=64,
        initializer_range=0.02,
    )
    model = SamVisionEncoder(config)
    for name, parameter in model.named_parameters():
        if 'rel_pos' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _torchvision():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(64, 8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    torch.nn.init.normal_(model.heads.head.weight)  # zero at first, which would hide every difference
    return model


def _with_biases(model):
    """Give the biases of relative positions values, which are zero or alike at first."""
    for name, parameter in model.named_parameters():
        if 'relative_position_bias_table' in name:
            torch.nn.init.normal_(parameter)
        elif 'cpb_mlp' in name or 'continuous_position_bias_mlp' in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif name.endswith(('norm1.weight', 'norm2.weight')):
            torch.nn.init.ones_(parameter)  # zero in timm's V2, which would hide every difference
    return model


def _timm_swin(name):
    import timm

    sizes = dict(embed_dim=16, depths=(4, 2), num_heads=(2, 2), window_size=4, patch_size=8, num_classes=5)
    return _with_biases(timm.create_model(name, pretrained=False, img_size=64, **sizes))


def _torchvision_swin(second):
    from torchvision.models import swin_transformer as swin

    parts = dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2) if second else {}
    sizes = dict(patch_size=[8, 8], embed_dim=16, depths=[4, 2], num_heads=[2, 2], window_size=[4, 4])
    return _with_biases(swin.SwinTransformer(**sizes, num_classes=5, stochastic_depth_prob=0.0, **parts))


SWIN = dict(image_size=64, patch_size=8, embed_dim=16, depths=[4, 2], num_heads=[2, 2], window_size=4)


def _transformers_swin(name):
    import transformers

    fused = {} if name.startswith('Swinv2') else dict(attn_implementation='sdpa')
    config = getattr(transformers, name.replace('Model', 'Config'))(**SWIN, **fused)
    return _with_biases(getattr(transformers, name)(config))


def _maskformer_swin():
    from transformers import MaskFormerSwinBackbone, MaskFormerSwinConfig

    return _with_biases(MaskFormerSwinBackbone(MaskFormerSwinConfig(**SWIN, out_indices=[1, 2])))


def _mask2former():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 4, 1, 1], num_heads=[2, 2, 2, 2], window_size=4,
        out_indices=[1, 2, 3, 4], attn_implementation='sdpa',
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=5, num_labels=3,
    )  # fmt: skip
    return _with_biases(Mask2FormerForUniversalSegmentation(config))


def _mm_swin():
    from mmdet.models.backbones import SwinTransformer

    return _with_biases(
        SwinTransformer(
            pretrain_img_size=64, embed_dims=16, patch_size=8, strides=(8, 2), window_size=4, depths=(4, 2),
            num_heads=(2, 2), out_indices=(0, 1), drop_path_rate=0.0,
        )
    )  # fmt: skip


def _sam2():
    from transformers import Sam2HieraDetConfig
    from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

    config = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=2, image_size=[64, 64], patch_kernel_size=[8, 8], patch_stride=[8, 8],
        patch_padding=[0, 0], window_positional_embedding_background_size=[4, 4], num_query_pool_stages=1,
        blocks_per_stage=[4, 2], embed_dim_per_stage=[16, 32], num_attention_heads_per_stage=[2, 2],
        window_size_per_stage=[4, 2], global_attention_blocks=[2], attn_implementation='sdpa',
    )  # fmt: skip
    return Sam2HieraDetModel(config)


def _timm_sam2():
    import timm

    return timm.create_model(
        'sam2_hiera_tiny', pretrained=False, embed_dim=16, num_heads=2, stages=(4, 2), patch_stride=(8, 8),
        patch_kernel=(8, 8), patch_padding=(0, 0), window_spec=(4, 2), global_att_blocks=(2,), global_pos_size=(4, 4),
        q_pool=1,
    )  # fmt: skip


def _segment_anything():
    from segment_anything.modeling import ImageEncoderViT

    model = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2, out_chans=8, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3),
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if 'rel_pos' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _dpt_hybrid():
    from transformers import BitConfig, DPTForDepthEstimation

    bit = BitConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 1, 1], layer_type='bottleneck', num_groups=4,
        out_features=['stage1', 'stage2', 'stage3'], embedding_dynamic_padding=True, global_padding='same',
    )  # fmt: skip
    config = _transformers(
        'DPT', patch_size=16, image_size=128, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, reassemble_factors=[1, 1, 1, 0.5], is_hybrid=True, backbone_config=bit,
        backbone_featmap_shape=[1, 16, 8, 8], neck_ignore_stages=[0, 1], attn_implementation='eager',
    )  # fmt: skip
    return DPTForDepthEstimation(config)


class PlainTransformer(torch.nn.Module):
    """A ViT in the form of the original code, without any library."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
            self.qkv, self.proj, self.fc = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)

        def forward(self, x):
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(attended.transpose(1, 2).flatten(2))
            return x + self.fc(self.norm2(x)).relu()

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Module()
        self.patch_embed.proj = torch.nn.Conv2d(3, 32, 8, 8)
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = torch.nn.ModuleList(self.Block() for _ in range(4))

    def forward(self, image):
        x = self.patch_embed.proj(image).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


MODELS = {
    'timm vit': lambda: _timm('vit_tiny_patch16_224', patch_size=8),
    'timm deit distilled': lambda: _timm('deit_tiny_distilled_patch16_224', patch_size=8),
    'timm dinov2 registers': lambda: _timm('vit_small_patch14_reg4_dinov2', patch_size=8),
    'timm eva02 rope': lambda: _timm('eva02_tiny_patch14_224', patch_size=8, num_heads=2),
    'timm dinov3 rope': lambda: _timm('vit_small_patch16_dinov3', patch_size=8),
    'timm sam': lambda: _timm('samvit_base_patch16', patch_size=8, window_size=3, global_attn_indexes=(1, 3)),
    'transformers vit': _vit,
    'transformers dinov2': _dinov2,
    'transformers dinov2 registers': lambda: _dinov2(True),
    'transformers dinov2 backbone': _dinov2_backbone,
    'transformers dinov3': _dinov3,
    'transformers clip': _clip,
    'transformers siglip': _siglip,
    'transformers beit': lambda: _beit(False),
    'transformers beit shared': lambda: _beit(True),
    'transformers dpt': _dpt,
    'transformers depth anything': _depth_anything,
    'transformers sam': _sam,
    'torchvision vit': _torchvision,
    'timm swin': lambda: _timm_swin('swin_tiny_patch4_window7_224'),
    'timm swin v2': lambda: _timm_swin('swinv2_tiny_window8_256'),
    'torchvision swin': lambda: _torchvision_swin(False),
    'torchvision swin v2': lambda: _torchvision_swin(True),
    'transformers swin': lambda: _transformers_swin('SwinModel'),
    'transformers swin v2': lambda: _transformers_swin('Swinv2Model'),
    'transformers maskformer swin': _maskformer_swin,
    'mmdet swin': _mm_swin,
    'transformers sam2': _sam2,
    'timm sam2': _timm_sam2,
    'segment_anything': _segment_anything,
    'plain': PlainTransformer,
}
NEEDS = {'mmdet swin': 'mmdet', 'segment_anything': 'segment_anything'}
GRID_BOUND = {'timm sam', 'transformers beit', 'transformers beit shared', 'transformers sam', 'segment_anything'}
GRID_BOUND |= {name for name in MODELS if 'swin' in name or 'sam2' in name}
# Models whose reduced map is not 8 x 8, tested apart.
OTHERS = {'transformers mask2former': _mask2former, 'transformers dpt hybrid': _dpt_hybrid}


def make(name):
    """Return the model, ready for inference, with the same weights in every call."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f'needs {NEEDS[name]}')
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = (MODELS | OTHERS)[name]()
    model.eval()  # that of mmdet returns nothing
    torch.random.set_rng_state(state)
    return model


def picture(batch=1, size=64, seed=1):
    """Return a picture with large areas and fine detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    fine = torch.randn(batch, 3, size, size, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size) + 0.3 * fine if batch else fine


def tensors(output):
    """Return all tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [each for part in output for each in tensors(part)]
    return []
