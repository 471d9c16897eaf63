# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues of a linear map in the complex plane."""

import os
from collections.abc import Mapping

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import plain, plain_legend

__all__ = ['save_spectrum']


def save_spectrum(path: str | os.PathLike, spectra: np.ndarray | Mapping[str, np.ndarray], title: str = '') -> None:
    """Draw eigenvalues next to the unit circle: inside a mode dies, outside it grows, on it it oscillates.

    Args:
        path: PNG to write, whole or not at all.
        spectra: (n,) complex, or several by name (``KoopmanAutoencoder.spectrum()``).
        title: Above all.

    Raises:
        ValueError: No eigenvalues, or some that are not finite.
        ModuleNotFoundError: matplotlib is missing.
    """
    spectra = spectra if isinstance(spectra, Mapping) else {'': spectra}
    spectra = {name: np.asarray(values, complex) for name, values in spectra.items()}
    if not spectra or any(values.ndim != 1 or not len(values) for values in spectra.values()):
        raise ValueError('spectra must hold eigenvalues (n,), got none or another shape')
    if not all(np.isfinite(values).all() for values in spectra.values()):
        raise ValueError('spectra must be finite, got NaN or inf')
    figure = new_figure(4.6, 4.8)
    axes = figure.add_subplot()
    angles = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angles), np.sin(angles), color='0.6', linewidth=1)
    for (name, values), marker in zip(spectra.items(), 'ox^sdv' * len(spectra), strict=False):
        axes.plot(values.real, values.imag, marker, markersize=5, alpha=0.8, label=plain(name))
    axes.set_aspect('equal')
    axes.set_xlabel('real part')
    axes.set_ylabel('imaginary part')
    axes.set_title(plain(title))
    if any(spectra):
        plain_legend(axes.legend(fontsize=8, loc='lower left'))
    save_figure(figure, path, bbox_inches='tight')
