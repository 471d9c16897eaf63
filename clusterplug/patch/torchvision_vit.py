"""torchvision's VisionTransformer."""

from torch import nn

from clusterplug.patch._hosts import Layout, class_names, comes_from, first_norm

NAME = 'torchvision'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of torchvision's ViT."""
    if not comes_from(module, 'torchvision') or 'VisionTransformer' not in class_names(module):
        return None
    return Layout(NAME, module, list(module.encoder.layers), module.conv_proj, 1, norm=first_norm)
