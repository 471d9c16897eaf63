"""mmdet3d's KITTI info files and ground-truth database, made by its own converters, safely.

mmdet3d's ``create_data.py`` writes into the folder of the raw data, needs all four splits, dies with an index or a
float error on a broken file, and starts again from nothing. Here every file is checked first, everything is written
under another name and renamed, finished parts are kept, and the raw folder may be read-only.
"""

import contextlib
import hashlib
import importlib
import io
import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.files import write_bytes
from clusterplug.datasets.kitti_frames import CLASSES, check_frame, clean_labels, frame_files

_CHUNK = 100  # frames that an interrupted run repeats at most
_PARTS = '.prepare_kitti'


class KittiSummary(NamedTuple):
    """What a split holds.

    Attributes:
        frames: number of frames.
        objects: boxes by class.
        without_points: of these, boxes by class that contain no point of the camera's view.
        without_objects: frames whose label file names no object.
    """

    frames: int
    objects: dict[str, int]
    without_points: dict[str, int]
    without_objects: int


def prepare_kitti(
    root: str | Path,
    out: str | Path,
    splits: Mapping[str, Sequence[str]],
    *,
    prefix: str = 'kitti',
    dont_care: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, KittiSummary]:
    """Write ``<prefix>_infos_{train,val,trainval,test}.pkl``, reduced point files and the ground-truth database.

    Args:
        root: raw KITTI, only read.
        out: the ``data_root`` of a config. When it is not ``root`` it gets links to the raw files.
        splits: frames by split, of ``train``, ``val`` and ``test``; ``trainval`` comes by itself.
        prefix: of the file names.
        dont_care: classes besides KITTI's that become ``DontCare`` regions.
        say: called with a line on each part that is done.

    Returns:
        A summary for each split.

    Raises:
        ValueError: broken files, all of them with their lines; nothing is written then. Frames in both splits.
    """
    root, out = Path(root).resolve(), Path(out).resolve()
    _check(root, splits, dont_care, rewritten=out != root)
    work = out / _PARTS
    _link(root, out, splits, dont_care)
    converters = load_converters()
    parts = {name: [] for name in splits}
    for name, frames in splits.items():
        for start in range(0, len(frames), _CHUNK):
            part = _part(root, out, work, converters, list(frames[start : start + _CHUNK]), name != 'test', dont_care)
            parts[name].append(part)
            say(f'{name}: {min(start + _CHUNK, len(frames))} of {len(frames)} frames')
    if 'train' in parts and 'val' in parts:
        parts['trainval'] = parts['train'] + parts['val']
    for name, files in parts.items():
        _write_infos(converters, files, work, out / f'{prefix}_infos_{name}.pkl')
    if 'train' in parts:
        _write_database(converters, out, prefix, parts['train'], say)
    return {name: _summary(files) for name, files in parts.items()}


def load_converters() -> types.SimpleNamespace:
    """mmdet3d's converter modules ``kitti``, ``update`` and ``database``; they are shipped, but in no package.

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
    names = dict(kitti='kitti_converter', update='update_infos_to_v2', database='create_gt_database')
    with contextlib.redirect_stdout(io.StringIO()):
        modules = {key: importlib.import_module(f'{package}.{name}') for key, name in names.items()}
    for module in modules.values():  # copies of our own: nobody else's progress bars are lost
        module.mmengine = _Quiet()
        module.track_iter_progress = iter
    return types.SimpleNamespace(**modules)


class _Quiet:
    """mmengine without progress bars, which would be written to a stream fixed at import."""

    track_iter_progress = staticmethod(iter)

    def __getattr__(self, name):
        import mmengine

        return getattr(mmengine, name)


def _check(root: Path, splits: Mapping[str, Sequence[str]], dont_care: Sequence[str], rewritten: bool) -> None:
    unknown = sorted({*splits} - {'train', 'val', 'test'})
    if unknown or not any(splits.values()):
        raise ValueError(f"splits must hold frames for some of 'train', 'val' and 'test', got {unknown or 'none'}")
    both = sorted({*splits.get('train', ())} & {*splits.get('val', ())})
    if both:
        raise ValueError(f'a frame is either for training or for validation; in both: {", ".join(both[:10])}')
    faults = [
        fault
        for name, frames in splits.items()
        for frame in frames
        for fault in check_frame(root, frame, name != 'test', dont_care, strict=not rewritten)
    ]
    if faults:
        listed = faults[:20] + [f'... and {len(faults) - 20} more'] * (len(faults) > 20)
        raise ValueError('\n  '.join([f'nothing was written: {len(faults)} faults in {root}', *listed]))


def _link(root: Path, out: Path, splits: Mapping[str, Sequence[str]], dont_care: Sequence[str]) -> None:
    """Links to the raw files of the chosen frames, where ``out`` is another folder; cleaned label files as copies."""
    if out == root:
        return
    for name, frames in splits.items():
        for frame in frames:
            target = frame_files(out, frame, name != 'test')
            for kind, source in frame_files(root, frame, name != 'test').items():
                path = target[kind]
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == 'label_2':
                    write_bytes(path, clean_labels(source.read_text(), dont_care).encode())
                else:
                    _link_to(path, source)
    if (root / 'training/planes').is_dir():  # of the ground, which some recipes put objects on
        _link_to(out / 'training/planes', root / 'training/planes')


def _link_to(path: Path, source: Path) -> None:
    if not (path.is_symlink() and path.resolve() == source.resolve()):
        temporary = _temporary(path)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(source)
        temporary.replace(path)


def _part(root, out, work, converters, frames: list[str], training: bool, dont_care: Sequence[str]) -> Path:
    """First-version infos of a few frames, and their reduced point files; kept while the raw files stay the same."""
    key = hashlib.sha256(repr((training, sorted(dont_care))).encode())
    for frame in frames:
        for path in frame_files(root, frame, training).values():
            state = path.stat()
            key.update(f'{path.name} {state.st_size} {state.st_mtime_ns}\n'.encode())
    path = work / f'{frames[0]}-{frames[-1]}-{key.hexdigest()[:16]}.pkl'
    if path.is_file():
        return path
    reduced = out / ('training' if training else 'testing') / 'velodyne_reduced'
    reduced.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        infos = converters.kitti.get_kitti_image_info(
            str(out),
            training=training,
            label_info=training,
            velodyne=True,
            calib=True,
            with_plane=training and (out / 'training/planes').is_dir(),
            image_ids=[int(frame) for frame in frames],
            num_worker=1,
            relative_path=True,
        )
        if training:
            converters.kitti._calculate_num_points_in_gt(str(out), infos, True)
        scratch = work / f'reduced.{os.getpid()}'
        scratch.mkdir(exist_ok=True)
        listing = scratch / 'infos.pkl'
        listing.write_bytes(pickle.dumps(infos))
        converters.kitti._create_reduced_point_cloud(str(out), str(listing), str(scratch))
    for frame in frames:
        (scratch / f'{frame}.bin').replace(reduced / f'{frame}.bin')
    shutil.rmtree(scratch)
    write_bytes(path, pickle.dumps(infos))
    return path


def _write_infos(converters, parts: list[Path], work: Path, path: Path) -> None:
    """Join parts and bring them into the second version with mmdet3d's own updater."""
    before, after = work / f'v1.{os.getpid()}', work / f'v2.{os.getpid()}'
    before.mkdir(exist_ok=True)
    after.mkdir(exist_ok=True)
    infos = [info for part in parts for info in pickle.loads(part.read_bytes())]
    (before / path.name).write_bytes(pickle.dumps(infos))
    with contextlib.redirect_stdout(io.StringIO()):
        converters.update.update_kitti_infos(str(before / path.name), str(after))
    (after / path.name).replace(path)
    shutil.rmtree(before)
    shutil.rmtree(after)


def _write_database(converters, out: Path, prefix: str, parts: list[Path], say) -> None:
    """The ground-truth database, in a folder of its own until it is complete; kept while the parts stay the same."""
    folder, infos = out / f'{prefix}_gt_database', out / f'{prefix}_dbinfos_train.pkl'
    stamp, names = folder / '.parts', '\n'.join(part.name for part in parts)
    if infos.is_file() and stamp.is_file() and stamp.read_text() == names:
        return say('ground-truth database: up to date')
    from mmengine.registry import DefaultScope

    new = _temporary(folder)
    shutil.rmtree(new, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope('mmdet3d'):
        converters.database.create_groundtruth_database(
            'KittiDataset',
            str(out),
            prefix,
            f'{prefix}_infos_train.pkl',
            relative_path=False,
            database_save_path=str(new),
            db_info_save_path=str(new / 'dbinfos.pkl'),
        )
    (new / '.parts').write_text(names)
    infos.unlink(missing_ok=True)  # from here on until the last line there is no database rather than a mixed one
    shutil.rmtree(folder, ignore_errors=True)
    (new / 'dbinfos.pkl').rename(_temporary(infos))
    new.rename(folder)
    _temporary(infos).replace(infos)
    say(f'ground-truth database: {sum(1 for _ in folder.glob("*.bin"))} objects')


def _summary(parts: list[Path]) -> KittiSummary:
    objects, without_points, without_objects, frames = {}, {}, 0, 0
    for part in parts:
        for info in pickle.loads(part.read_bytes()):
            frames += 1
            names = info.get('annos', {}).get('name', ())
            without_objects += not any(name in CLASSES for name in names)
            for name, count in zip(names, info.get('annos', {}).get('num_points_in_gt', ()), strict=True):
                if name in CLASSES:
                    objects[str(name)] = objects.get(str(name), 0) + 1
                    without_points[str(name)] = without_points.get(str(name), 0) + (count == 0)
    return KittiSummary(frames, objects, {name: int(n) for name, n in without_points.items() if n}, without_objects)


def _temporary(path: Path) -> Path:
    return path.with_name(f'.{path.name}.part')
