# SPDX-License-Identifier: Apache-2.0
"""Scans as a recording for the rerun viewer (``pip install rerun-sdk``)."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterplug.core.files import whole_file
from clusterplug.visualization._checks import check_cloud


def save_rerun(
    path: str | os.PathLike, scans: Sequence[tuple[np.ndarray, Sequence[tuple[str, np.ndarray]]]], name: str = 'scans'
) -> None:
    """Write scans one after the other on a time line, each coloring as an entity of its own.

    Args:
        path: .rrd file to write, whole or not at all.
        scans: for each scan its points (N, 3 or more) in meters, and (name, (N, 3) RGB) colorings.
        name: of the recording.

    Raises:
        ModuleNotFoundError: rerun-sdk is missing.
        ValueError: shapes that do not fit.
    """
    try:
        import rerun
    except ImportError as error:
        raise ModuleNotFoundError('.rrd recordings need rerun: pip install rerun-sdk') from error
    for points, colorings in scans:
        for title, colors in colorings:
            check_cloud(np.asarray(points), np.asarray(colors), f"colors of '{title}'")

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:  # rerun writes by name, into the temporary file
        recording = rerun.RecordingStream(name)
        recording.save(file.name)
        for number, (points, colorings) in enumerate(scans):
            recording.set_time('scan', sequence=number)
            for title, colors in colorings:
                cloud = rerun.Points3D(np.asarray(points)[:, :3], colors=np.asarray(colors, np.uint8))
                recording.log(title.replace(' ', '_'), cloud)
        recording.flush()
        recording.disconnect()
