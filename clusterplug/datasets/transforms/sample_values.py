# SPDX-License-Identifier: Apache-2.0
"""Values that are known of a sample, put into it on its way to the model."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform

from clusterplug.core.checks import nearest_name
from clusterplug.estimators import SampleLikelihood
from clusterplug.memory import SampleTable
from clusterplug.registry import TRANSFORMS

__all__ = ['SampleValues', 'look_up', 'read_likelihoods', 'sample_id']

_PARTS = 3


def sample_id(sample: Mapping, key: str) -> Hashable:
    """Return the id of a sample: what stands under ``key`` in its dict or its meta information.

    A path becomes its last three parts, such as ``'08/velodyne/000000.bin'``: a data set may move, and scans of several
    sequences may have one name.

    Args:
        sample: The dict of a pipeline, the info of a data set, or the meta information of a data sample.
        key: ``'lidar_path'``, ``'img_path'``, ``'token'``, ``'sample_idx'`` (the index in the data set), or another.

    Raises:
        ValueError: There is nothing under the key.

    Example:
        >>> sample_id({'lidar_path': '/data/sequences/08/velodyne/000000.bin'}, 'lidar_path')
        '08/velodyne/000000.bin'
    """
    value = sample.get(key)
    if value is None and key == 'lidar_path':
        value = (sample.get('lidar_points') or {}).get('lidar_path')
    if value is None and key == 'img_path':
        cameras = [each for each in (sample.get('images') or {}).values() if isinstance(each, Mapping)]
        value = next((camera['img_path'] for camera in cameras if camera.get('img_path')), None)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if value is None:
        raise ValueError(f'a sample has no {key!r}, got {sorted(sample)}; choose another key')
    if isinstance(value, str | Path) and key.endswith('path'):
        return '/'.join(Path(value).parts[-_PARTS:])
    return value.item() if hasattr(value, 'item') else value


def read_likelihoods(values: Any) -> tuple[dict[Hashable, float], str | None]:
    """Return ``{id: value}`` and the key of the ids (None where nothing tells it).

    Args:
        values: A fitted :class:`~clusterplug.estimators.SampleLikelihood`, its file, or a dict.
    """
    if isinstance(values, str | Path):
        values = SampleLikelihood.load(values)
    if isinstance(values, SampleLikelihood):
        return values.to_dict(), getattr(values, 'key_', None)
    if isinstance(values, Mapping) and values:
        return dict(values), None
    raise TypeError(
        f'values must be a SampleLikelihood, its file, a dict or a SampleTable, got {type(values).__name__}'
    )


def look_up(table: Mapping[Hashable, Any], identity: Hashable, key: str) -> Any:
    """Return the entry of a sample; raise where it has none: it must not get a weight by accident."""
    if identity in table:
        return table[identity]
    near = nearest_name(str(identity), [str(each) for each in table]) if len(table) < 10_000 else ''
    raise ValueError(
        f'the sample {identity!r} (its {key}) is not among the {len(table)} that have a value{near}; compute the '
        f'values for this data set, or check the key'
    )


@TRANSFORMS.register_module()
class SampleValues(BaseTransform):
    """Put what is known of a sample (its likelihood, a weight, a cluster) into its dict.

    For mmdet3d add the names to the ``meta_keys`` of ``Pack3DDetInputs``. A sample that has no value is an error.

    Args:
        values: The file of ``tools/dataset_equity.py``, a :class:`~clusterplug.estimators.SampleLikelihood`, a dict
            ``{id: value}``, or a :class:`~clusterplug.memory.SampleTable` (or its config), whose ids are the indices
            of the data set.
        name: Under which name the value goes; of a table a column or several (all by default), under their own names.
        key: Where the sample has its id (:func:`sample_id`); by default what the file says, else ``'sample_idx'``.

    Raises:
        ValueError: In :meth:`transform`, a sample without id or value.

    Example:
        >>> SampleValues({7: 0.25})({'sample_idx': 7})['sample_likelihood']
        0.25
    """

    def __init__(self, values: Any, name: str | Sequence[str] | None = None, key: str | None = None):
        if isinstance(values, Mapping) and 'type' in values:
            values = dict(values)
            values.pop('type')
            values = SampleTable(**values)
        if isinstance(values, SampleTable):
            names = values.names if name is None else ((name,) if isinstance(name, str) else tuple(name))
            for each in names:
                values[each]  # raises, with the names that it has
            self.table, self.names, self.key = values, names, key or 'sample_idx'
            return
        self.table, known = read_likelihoods(values)
        if name is not None and not isinstance(name, str):
            raise ValueError(f'name must be one name for one value a sample, got {name!r}')
        self.names, self.key = (name or 'sample_likelihood',), key or known or 'sample_idx'

    def transform(self, results: dict) -> dict:
        """Add the values."""
        identity = sample_id(results, self.key)
        if isinstance(self.table, SampleTable):
            try:
                found = self.table.read([identity], *self.names)
            except (TypeError, ValueError) as error:
                raise ValueError(f'the sample {identity!r} (its {self.key}) is not in the table: {error}') from None
            rows = {self.names[0]: found} if len(self.names) == 1 else found
            for name, value in rows.items():
                results[name] = value[0].item() if value.dim() == 1 else value[0].numpy()
            return results
        results[self.names[0]] = look_up(self.table, identity, self.key)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({len(self.table)} samples, names={list(self.names)}, key={self.key!r})'
