"""torchvision's VisionTransformer."""

from torch import nn

from clusterplug.patch._hosts import Layout, class_names, comes_from, first_norm

NAME = 'torchvision'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of torchvision's ViT."""
    if not comes_from(module, 'torchvision') or 'VisionTransformer' not in class_names(module):
        return None
    # MultiheadAttention has a kernel of its own at test time.
    blocks = list(module.encoder.layers)
    return Layout(NAME, module, blocks, module.conv_proj, 1, norm=first_norm, knows_sizes=False)
