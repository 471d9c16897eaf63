# SPDX-License-Identifier: Apache-2.0
"""Generated folders: begun with some settings, finished with a marker, never mixed with other settings or files."""

from collections.abc import Callable
from pathlib import Path

from clusterplug.core.outputs import difference, read_marker, write_marker


class OtherSettings(FileExistsError):
    """A folder that was generated with other settings."""


def begin(folder: Path, name: str, settings: dict, foreign: Callable[[], bool], what: str) -> None:
    """Claim a folder for some settings, so that an interrupted run can go on and another one is refused.

    Args:
        folder: It exists, and is locked.
        name: Of the marker that :func:`finish` writes; until then ``.<name>.begun`` holds the settings.
        settings: Plain values.
        foreign: Whether the folder holds data that nobody claimed.
        what: Of the data, for messages.

    Raises:
        OtherSettings: The folder was generated, or begun, with other settings.
        FileExistsError: It holds files of somebody else.
    """
    for path in (_begun(folder, name), folder / name):
        found = read_marker(path)
        if found is None and path.exists():
            raise FileExistsError(f'{path} is damaged; remove the folder by hand or choose another')
        if found is not None and found != settings:
            raise OtherSettings(
                f'{folder} holds {what} of other settings: {difference(found, settings)}; choose another folder'
            )
        if found is not None:
            return
    if foreign():
        raise FileExistsError(
            f'{folder} holds files without a note of the settings they were made with: {what} of an earlier version, '
            'or files of somebody else. They are left alone; choose another folder, or move them away'
        )
    write_marker(_begun(folder, name), settings)


def finish(folder: Path, name: str, settings: dict) -> None:
    """Say that all is written, as the last thing."""
    write_marker(folder / name, settings)
    _begun(folder, name).unlink(missing_ok=True)


def forget(folder: Path, name: str) -> None:
    """Take both markers away, before anything of the folder is."""
    for path in (folder / name, _begun(folder, name)):
        path.unlink(missing_ok=True)


def settings_of(folder: Path, name: str) -> dict | None:
    """Settings of what the folder holds or was begun with, None if nobody claimed it."""
    found = read_marker(_begun(folder, name))
    return read_marker(folder / name) if found is None else found


def _begun(folder: Path, name: str) -> Path:
    return folder / f'.{name}.begun'
