# SPDX-License-Identifier: Apache-2.0
"""A placeholder for models that call their loss themselves."""

from torch import nn


class NoLoss(nn.Module):
    """Takes nothing and gives nothing."""

    def forward(self) -> dict:
        return {}
