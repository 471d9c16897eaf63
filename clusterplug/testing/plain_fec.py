# SPDX-License-Identifier: Apache-2.0
"""FEC in its dense form: every similarity, every product of centers, points and channels, nothing clever.

What the backbone is compared with in tests and benchmarks. Modules are named as in the authors' checkpoints, so that
weights of one fit the other through the converter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cosines(centers: Tensor, points: Tensor) -> Tensor:
    """(B, M, N) of (B, M, D) and (B, N, D)."""
    return F.normalize(centers, dim=-1) @ F.normalize(points, dim=-1).transpose(1, 2)


def as_points(maps: Tensor) -> Tensor:
    """(B, C, H, W) as a copy (B, H W, C)."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def cut(maps: Tensor, fold: int) -> Tensor:
    """Regions of (B, C, H, W) as further images, row by row."""
    rows = [row.chunk(fold, 3) for row in maps.chunk(fold, 2)]
    return torch.stack([region for row in rows for region in row], 1).flatten(0, 1)


def paste(regions: Tensor, fold: int) -> Tensor:
    """Undo ``cut``."""
    parts = regions.unflatten(0, (-1, fold * fold)).unbind(1)
    return torch.cat([torch.cat(parts[fold * i : fold * (i + 1)], 3) for i in range(fold)], 2)


def winners(similarity: Tensor) -> Tensor:
    """0/1 (B, M, N): the most similar center of each point."""
    return torch.zeros_like(similarity).scatter_(1, similarity.max(1, keepdim=True).indices, 1.0)


class Cluster(nn.Module):
    def __init__(self, dim, heads, head_dim, grid, fold):
        super().__init__()
        self.heads, self.grid, self.fold = heads, grid, fold
        self.f, self.v = nn.Conv2d(dim, heads * head_dim, 1), nn.Conv2d(dim, heads * head_dim, 1)
        self.proj = nn.Conv2d(heads * head_dim, dim, 1)
        self.sim_alpha, self.sim_beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        batch = len(x)
        f, v = (cut(conv(x).unflatten(1, (self.heads, -1)).flatten(0, 1), self.fold) for conv in (self.f, self.v))
        centers, center_values = (as_points(F.adaptive_avg_pool2d(each, self.grid)) for each in (f, v))
        similarity = torch.sigmoid(self.sim_beta + self.sim_alpha * cosines(centers, as_points(f)))
        member = winners(similarity)
        similarity = similarity * member
        sums = member @ as_points(v)
        groups = (center_values + sums) / (1 + member.sum(-1, keepdim=True))
        out = (groups[:, :, None] * similarity[..., None]).sum(1)
        out = paste(out.transpose(1, 2).reshape(v.shape), self.fold)
        return self.proj(out.unflatten(0, (batch, self.heads)).flatten(1, 2))


class Mlp(nn.Module):
    def __init__(self, dim, ratio):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim * ratio), nn.Linear(dim * ratio, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, dim, ratio, **clustering):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.token_mixer, self.mlp = Cluster(dim, **clustering), Mlp(dim, ratio)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((dim,), 1e-5)) for _ in range(2))

    def forward(self, x):
        x = x + self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class ClusterPool(nn.Module):
    def __init__(self, dim, out_dim, fold):
        super().__init__()
        self.fold = fold
        self.conv_f, self.conv_v = nn.Conv2d(dim, out_dim, 1), nn.Conv2d(dim, out_dim, 1)
        self.conv_skip = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(1, out_dim)

    def forward(self, x):
        f, v = cut(self.conv_f(x), self.fold), cut(self.conv_v(x), self.fold)
        half = (f.shape[2] // 2, f.shape[3] // 2)
        centers, center_values = F.adaptive_avg_pool2d(f, half), as_points(F.adaptive_avg_pool2d(v, half))
        similarity = cosines(as_points(centers), as_points(f))
        member, label = winners(similarity), similarity.max(1).indices
        rows = (label + len(center_values[0]) * torch.arange(len(label), device=x.device)[:, None]).flatten()
        sums = torch.zeros_like(center_values).flatten(0, 1).index_add(0, rows, as_points(v).flatten(0, 1))
        groups = (center_values + sums.view_as(center_values)) / (1 + member.sum(-1, keepdim=True))
        return self.conv_skip(x) + self.norm2(paste(groups.transpose(1, 2).reshape(centers.shape), self.fold))


class PlainFEC(nn.Module):
    """FEC in its dense form, for sizes that divide by 32 and by the folds.

    Args:
        arch (FECArch): As ``resolve_arch`` returns it.
        num_classes: 0 = maps of all stages.

    Source:
        The description of Chen et al., CVPR 2024, and the names of guikunchen/FEC (Apache-2.0).

    Example:
        >>> from clusterplug.backbones import resolve_arch
        >>> PlainFEC(resolve_arch('small'), 10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, arch, num_classes: int = 1000):
        super().__init__()
        self.num_classes = num_classes
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(5, arch.dims[0], 4, stride=4)
        self.network = nn.ModuleList()
        for stage, dim in enumerate(arch.dims):
            options = dict(heads=arch.heads[stage], head_dim=arch.head_dims[stage])
            options.update(grid=arch.grid[stage], fold=arch.fold[stage][0])
            blocks = [Block(dim, arch.mlp_ratios[stage], **options) for _ in range(arch.blocks[stage])]
            self.network.append(nn.Sequential(*blocks))
            if stage + 1 < len(arch.dims):
                self.network.append(ClusterPool(dim, arch.dims[stage + 1], arch.fold[stage + 1][0]))
        if num_classes:
            self.norm, self.head = nn.GroupNorm(1, arch.dims[-1]), nn.Linear(arch.dims[-1], num_classes)
        else:
            for stage, dim in enumerate(arch.dims):
                self.add_module(f'norm{2 * stage}', nn.GroupNorm(1, dim))

    def forward(self, x):
        rows, columns = (torch.arange(size, device=x.device, dtype=x.dtype) / (size - 1) - 0.5 for size in x.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing='ij')).expand(len(x), -1, -1, -1)
        x, maps = self.patch_embed.proj(torch.cat([x, places], 1)), []
        for number, layer in enumerate(self.network):
            x = layer(x)
            if not self.num_classes and number % 2 == 0:
                maps.append(getattr(self, f'norm{number}')(x))
        return self.head(self.norm(x).mean((2, 3))) if self.num_classes else maps
