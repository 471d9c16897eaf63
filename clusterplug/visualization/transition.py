# SPDX-License-Identifier: Apache-2.0
"""When subspaces are recovered, and how many directions a denoiser changes."""

import os
from collections.abc import Sequence

from clusterplug.visualization._figures import new_figure, save_figure

__all__ = ['save_phase_transition']


def save_phase_transition(
    path: str | os.PathLike,
    ratios: Sequence[float],
    errors: Sequence[float],
    noises: Sequence[float],
    ranks: Sequence[float],
) -> None:
    """Draw the error of recovery against N / d, and next to it the rank of a denoiser's Jacobian against noise.

    Args:
        path: PNG to write, whole or not at all.
        ratios: Samples of a subspace in multiples of its dimension, > 0.
        errors: Of projectors, one a ratio.
        noises: Noise over signal, > 0.
        ranks: One a noise.

    Raises:
        ValueError: Not as many values as places, or places that are not positive.
        ModuleNotFoundError: matplotlib is missing.
    """
    save_figure(_draw(ratios, errors, noises, ranks), path, bbox_inches='tight')


def _draw(ratios, errors, noises, ranks):
    parts = (('N / d', ratios, 'error of the projectors', errors), ('noise / signal', noises, 'rank', ranks))
    for name, places, what, values in parts:
        if len(places) != len(values) or not len(places):
            raise ValueError(f'{what} must have one value for each {name}, got {len(values)} for {len(places)}')
        if min(places) <= 0:
            raise ValueError(f'{name} must be above 0, got {min(places)}')
    figure = new_figure(8, 3)
    for axes, (name, places, what, values) in zip(figure.subplots(1, 2), parts, strict=True):
        axes.plot(places, values, 'o-', color='#2563eb', lw=1.2, markersize=4)
        axes.set_xscale('log')
        axes.set_xticks(places, [f'{place:g}' for place in places])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].axvline(1.0, color='0.5', ls='--', lw=1)  # below it no method recovers a subspace
    figure.tight_layout()
    return figure
