"""Where reduced tokens lie on the map, and rotary embeddings for those places."""

import torch
from torch import Tensor


class SharedTable:
    """Positions of the reduced tokens of one forward pass; tables made for them are kept for the next block.

    Args:
        size: (H, W) of the map.
        grid: (h, w), or None where reduced tokens form no grid.
        places: (M, 2) or (B, M, 2) row and column of each reduced token on the map.
        num_prefix: Tokens in front.
    """

    def __init__(self, size: tuple[int, int], grid: tuple[int, int] | None, places: Tensor, num_prefix: int):
        self.size, self.grid, self.places, self.num_prefix = size, grid, places, num_prefix
        self._made = []

    def rotation(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (..., M, D) at the places, from those of the full map (..., H * W, D)."""
        for known, made in self._made:
            if known is cosine:
                return made
        made = rotation_at(cosine, sine, self.size, self.places)
        self._made.append((cosine, made))
        return made


def cell_places(size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the middles (h * w, 2) of the cells of a grid in rows and columns of the map.

    Example:
        >>> cell_places((2, 4), (1, 2), torch.device('cpu')).tolist()
        [[0.5, 0.5], [0.5, 2.5]]
    """
    rows = (torch.arange(grid[0], device=device) + 0.5) * (size[0] / grid[0]) - 0.5
    columns = (torch.arange(grid[1], device=device) + 0.5) * (size[1] / grid[1]) - 0.5
    return torch.stack([rows[:, None].expand(*grid), columns.expand(*grid)], -1).flatten(0, 1)


def rotation_at(cosine: Tensor, sine: Tensor, size: tuple[int, int], places: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotary embeddings at places between the tokens.

    Angles are linear in row and column in every rotary embedding of maps, so the angle at a place is that of a token
    plus parts of the steps to the next row and the next column; steps are below half a turn.

    Args:
        cosine: (..., H * W, D).
        sine: Same shape.
        size: (H, W).
        places: (M, 2), or (B, M, 2) for different places in each image.

    Returns:
        Two (..., M, D), or (B, 1, M, D) (for all heads) with places of each image.
    """
    height, width = size
    row = places[..., 0].clamp(0, height - 1)
    column = places[..., 1].clamp(0, width - 1)
    top, left = row.floor().clamp(max=max(height - 2, 0)), column.floor().clamp(max=max(width - 2, 0))
    part_row, part_column = (row - top)[..., None], (column - left)[..., None]
    token = (top * width + left).long()
    below = token + (width if height > 1 else 0)
    right = token + (1 if width > 1 else 0)

    def pick(index: Tensor) -> tuple[Tensor, Tensor]:
        flat = index.flatten()
        picked = [table.index_select(-2, flat).float() for table in (cosine, sine)]
        if index.dim() == 1:
            return tuple(picked)
        # (..., B * M, D) -> (B, heads or 1, M, D)
        picked = [each.unflatten(-2, index.shape).movedim(-3, 0) for each in picked]
        return tuple(each.unsqueeze(1) if each.dim() == 3 else each for each in picked)

    here, down, across = pick(token), pick(below), pick(right)
    if token.dim() == 2:
        part_row, part_column = part_row[:, None], part_column[:, None]
    angle = torch.atan2(here[1], here[0]) + part_row * _step(here, down) + part_column * _step(here, across)
    return angle.cos().to(cosine.dtype), angle.sin().to(sine.dtype)


def _step(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return the angle from the first to the second (cosine, sine)."""
    return torch.atan2(second[1] * first[0] - second[0] * first[1], second[0] * first[0] + second[1] * first[1])
