"""open_clip's VisionTransformer: the image tower of CLIP models, OpenAI's weights among them."""

from torch import nn

from clusterplug.patch._hosts import Layout, comes_from, first_norm

NAME = 'open_clip'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of the image tower of an open_clip model."""
    if type(module).__name__ != 'VisionTransformer' or not comes_from(module, 'open_clip'):
        return None
    transformer = module.transformer
    if not getattr(transformer, 'batch_first', True):
        return None  # Such blocks take (tokens, batch, channels).
    return Layout(NAME, module, list(transformer.resblocks), module.conv1, 1, norm=first_norm)
