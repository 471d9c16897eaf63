# SPDX-License-Identifier: Apache-2.0
"""What a run is: the content of its config, bases included, and the versions of the code; never the name of a file."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path

# Where a run writes, where it starts from and who starts it do not change what it computes.
_NOT_PART_OF_IT = ('work_dir', 'resume', 'launcher')
_PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'spconv')


def content_of(config: str, options: dict) -> dict[str, str] | None:
    """The merged config as text by dotted key, None if there is no such config.

    Args:
        config: path of a config, or ``package::path``.
        options: values that replace some of it, with dotted keys.
    """
    from clusterplug.cli import find_config, load_config

    try:
        find_config(config)
    except (FileNotFoundError, ModuleNotFoundError):
        return None
    merged = load_config(config, dict(options), '').to_dict()
    return dict(_leaves({key: value for key, value in merged.items() if key not in _NOT_PART_OF_IT}))


def _leaves(value, prefix: str = ''):
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f'{prefix}.{key}' if prefix else str(key))
    else:
        # An address in the text of an object would make each start another run.
        text = repr(value) if not callable(value) else f'{getattr(value, "__module__", "")}.{value.__qualname__}'
        yield prefix, text


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that compute, and a fingerprint of the code of clusterplug."""
    found = {'clusterplug': _code_of(Path(__file__).resolve().parents[1])}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _code_of(folder: Path) -> str:
    from clusterplug.version import __version__

    code = hashlib.sha256()
    for path in sorted(folder.rglob('*.py')):
        if '.mim' not in path.parts:
            code.update(path.relative_to(folder).as_posix().encode() + b'\0' + path.read_bytes() + b'\0')
    return f'{__version__}, code {code.hexdigest()[:12]}'
