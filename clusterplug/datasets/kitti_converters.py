# SPDX-License-Identifier: Apache-2.0
"""mmdet3d's own KITTI converters, taught that a frame may have no picture and a point may be no number."""

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path

import numpy as np

IMAGE_SIZE = (1242, 375)  # width and height of most of KITTI's pictures


def load_converters(image_size: tuple[int, int] = IMAGE_SIZE) -> types.SimpleNamespace:
    """mmdet3d's converter modules ``kitti``, ``update`` and ``database``; they are shipped, but in no package.

    Args:
        image_size: width and height in pixels for frames without a picture.

    Raises:
        ModuleNotFoundError: mmdet3d is missing or was installed without its tools.
    """
    import mmdet3d

    base = Path(mmdet3d.__file__).parent
    for folder in (base / '.mim/tools/dataset_converters', base.parent / 'tools/dataset_converters'):
        if (folder / 'kitti_converter.py').is_file():
            break
    else:
        raise ModuleNotFoundError(
            f'mmdet3d in {base} comes without tools/dataset_converters; install its wheel: pip install mmdet3d'
        )
    package = 'mmdet3d_dataset_converters'
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder)]
    names = dict(
        kitti='kitti_converter', update='update_infos_to_v2', database='create_gt_database', files='kitti_data_utils'
    )
    with contextlib.redirect_stdout(io.StringIO()):
        modules = {key: importlib.import_module(f'{package}.{name}') for key, name in names.items()}
    for module in modules.values():  # copies of our own: nobody else's progress bars are lost
        module.mmengine = _Quiet()
        module.track_iter_progress = iter
    modules['kitti'].np = _FinitePoints()
    files = modules.pop('files')
    files.io = types.SimpleNamespace(imread=lambda path: _Picture(path, image_size))
    if not hasattr(files, 'host_get_image_path'):
        files.host_get_image_path = files.get_image_path
    host = files.host_get_image_path
    files.get_image_path = lambda *args, **options: host(*args, **{**options, 'exist_check': False})
    return types.SimpleNamespace(**modules)


class _Quiet:
    """mmengine without progress bars, which would be written to a stream fixed at import."""

    track_iter_progress = staticmethod(iter)

    def __getattr__(self, name):
        import mmengine

        return getattr(mmengine, name)


class _FinitePoints:
    """NumPy whose ``fromfile`` leaves points with NaN or inf out: they would be counted in every box."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def fromfile(file, dtype=np.float32, count=-1):
        points = np.fromfile(file, dtype, count).reshape(-1, 4)
        return points[np.isfinite(points).all(1)].ravel()


class _Picture:
    """The shape of a picture, without its pixels; of a missing one the default."""

    def __init__(self, path, size: tuple[int, int]):
        if Path(path).is_file():
            from PIL import Image, UnidentifiedImageError

            try:
                with Image.open(path) as image:
                    size = image.size
            except (UnidentifiedImageError, SyntaxError, ValueError, OSError) as error:
                raise ValueError(f'{path} cannot be read as a picture ({error}); fetch it again') from error
        self.shape = (size[1], size[0], 3)
