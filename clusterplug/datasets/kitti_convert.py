# SPDX-License-Identifier: Apache-2.0
"""mmdet3d's KITTI info files and ground-truth database, made by its own converters, safely.

mmdet3d's ``create_data.py`` writes into the folder of the raw data, needs all four splits, dies with an index or a
float error on a broken file, and starts again from nothing. Here every file is checked first, everything is written
under another name and renamed, finished parts are kept, and the raw folder may be read-only.
"""

import contextlib
import hashlib
import io
import os
import pickle
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clusterplug.core.files import write_bytes
from clusterplug.core.outputs import (
    LOCK,
    SourceOverwritten,
    fingerprint,
    locked_folder,
    read_marker,
    refuse_source_targets,
    write_marker,
)
from clusterplug.datasets.kitti_converters import IMAGE_SIZE, load_converters
from clusterplug.datasets.kitti_frames import CLASSES, check_frame, clean_labels, count_points, frame_files
from clusterplug.datasets.kitti_parts import load_part, save_part

_CHUNK = 100  # frames that an interrupted run repeats at most
_PARTS = '.prepare_kitti'
_STAMP = '.prepare_kitti.json'  # in the database, written last
_VERSION = 2  # raised whenever the same files would give other parts


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
    image_size: tuple[int, int] = IMAGE_SIZE,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, KittiSummary]:
    """Write ``<prefix>_infos_{train,val,trainval,test}.pkl``, reduced point files and the ground-truth database.

    Args:
        root: raw KITTI, only read. Data of a laser alone, without ``image_2``, will do.
        out: the ``data_root`` of a config. When it is not ``root`` it gets links to the raw files.
        splits: frames by split, of ``train``, ``val`` and ``test``; ``trainval`` comes by itself.
        prefix: of the file names.
        dont_care: classes besides KITTI's that become ``DontCare`` regions.
        image_size: width and height in pixels that bound the view of the camera where no chosen frame has a picture.
        say: called with a line on each part that is done, and on frames with points that are no numbers.

    Returns:
        A summary for each split.

    Raises:
        ValueError: broken files, all of them with their lines; nothing is written then. Frames in both splits. A
            target that is, through links, a raw file or lies in a raw folder.
        FileExistsError: ``out`` holds files in the place of links, or a database, that this function did not write.
        FolderInUse: Another process prepares ``out``.
    """
    if Path(out).resolve() == Path(root).resolve() and os.path.abspath(out) != os.path.abspath(root):
        raise SourceOverwritten(
            f'{out} is a link to {root}, which is only read; name {root} alone to write into it, or another folder'
        )
    if not prefix or not prefix.isprintable() or '/' in prefix:
        raise ValueError(f'prefix must be the beginning of file names, without a folder, got {prefix!r}')
    root, out = Path(root).resolve(), Path(out).resolve()
    images = _has_images(root, splits)
    _check(root, splits, dont_care, rewritten=out != root, images=images, say=say)
    work = out / _PARTS
    _refuse(root, out, prefix, splits, dont_care, images)
    if not images:
        say(f'no frame has a picture in image_2: the view of the camera is taken as {image_size[0]} x {image_size[1]}')
    with locked_folder(out):
        _link(root, out, splits, dont_care)
        converters = load_converters(image_size)
        settings = (sorted(dont_care), None if images else image_size)
        parts = {name: [] for name in splits}
        for name, frames in splits.items():
            for start in range(0, len(frames), _CHUNK):
                some = list(frames[start : start + _CHUNK])
                parts[name].append(_part(root, out, work, converters, some, name != 'test', settings))
                say(f'{name}: {min(start + _CHUNK, len(frames))} of {len(frames)} frames')
        if 'train' in parts and 'val' in parts:
            parts['trainval'] = parts['train'] + parts['val']
        for name, files in parts.items():
            _write_infos(converters, files, work, out / f'{prefix}_infos_{name}.pkl')
        if 'train' in parts:
            _write_database(converters, out, work, prefix, parts['train'], say)
        return {name: _summary(files) for name, files in parts.items()}


def _has_images(root: Path, splits: Mapping[str, Sequence[str]]) -> bool:
    """Whether any chosen frame has a picture: then one that is missing is a fault, else nobody has a camera."""
    return any(
        frame_files(root, frame, name != 'test')['image_2'].is_file()
        for name, frames in splits.items()
        for frame in frames
    )


def _check(root: Path, splits: Mapping, dont_care: Sequence[str], rewritten: bool, images: bool, say: Callable) -> None:
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
        for fault in check_frame(root, frame, name != 'test', dont_care, not rewritten, images)
    ]
    if faults:
        listed = faults[:20] + [f'... and {len(faults) - 20} more'] * (len(faults) > 20)
        raise ValueError('\n  '.join([f'nothing was written: {len(faults)} faults in {root}', *listed]))
    for name, frames in splits.items():
        for frame in frames:
            path = frame_files(root, frame, name != 'test')['velodyne']
            count, bad = count_points(path)
            if bad:
                say(f'{path}: {bad} of {count} points have NaN or inf; they are left out')


def _refuse(root: Path, out: Path, prefix: str, splits: Mapping, dont_care: Sequence[str], images: bool) -> None:
    """Refuse, before anything is written, whatever would write into the raw data or over files of somebody else."""
    halves = [root / half for half in ('training', 'testing')]
    raw = [half / name for half in halves for name in ('velodyne', 'image_2', 'calib', 'label_2', 'planes')]
    targets = [out / half / 'velodyne_reduced' for half in ('training', 'testing')]
    targets += [out / _PARTS, out / f'{prefix}_gt_database', out / LOCK]
    if out != root:
        targets += [out / half.name / folder.name for half in halves for folder in raw[:4]]
        targets += [out / half.name for half in halves]
    refuse_source_targets(raw if out == root else [*halves, *raw], targets)
    refuse_source_targets(raw, [*(out / f'{prefix}_infos_{name}.pkl' for name in (*splits, 'trainval'))])
    foreign = not (out / _PARTS).is_dir()
    for name, frames in splits.items() if out != root else ():
        for frame in frames:
            target = frame_files(out, frame, name != 'test')
            for kind, source in frame_files(root, frame, name != 'test').items():
                path = target[kind]
                if path.is_symlink() or not path.exists() or (kind == 'image_2' and not images):
                    continue
                if kind == 'label_2':
                    wanted = clean_labels(source.read_text(), dont_care).encode()
                    mine = not foreign or os.path.samefile(path, source) or path.read_bytes() == wanted
                else:
                    mine = os.path.samefile(path, source)
                if not mine:
                    raise FileExistsError(
                        f'{path} is there already and was not made by this tool from {source}; choose another --out, '
                        'or remove it'
                    )
    folder = out / f'{prefix}_gt_database'
    if 'train' in splits and folder.is_dir() and not any((folder / name).is_file() for name in (_STAMP, '.parts')):
        raise FileExistsError(
            f'{folder} was not made by this tool; choose another --prefix or --out, or remove it if you can spare it'
        )


def _link(root: Path, out: Path, splits: Mapping[str, Sequence[str]], dont_care: Sequence[str]) -> None:
    """Links to the raw files of the chosen frames, where ``out`` is another folder; cleaned label files as copies."""
    if out == root:
        return
    for name, frames in splits.items():
        for frame in frames:
            target = frame_files(out, frame, name != 'test')
            for kind, source in frame_files(root, frame, name != 'test').items():
                path = target[kind]
                if kind == 'image_2' and not source.is_file():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == 'label_2':
                    if path.is_symlink():  # written through, it would be the raw file
                        path.unlink()
                    write_bytes(path, clean_labels(source.read_text(), dont_care).encode())
                else:
                    _link_to(path, source)
    if (root / 'training/planes').is_dir():  # of the ground, which some recipes put objects on
        _link_to(out / 'training/planes', root / 'training/planes')


def _link_to(path: Path, source: Path) -> None:
    if path.exists() and os.path.samefile(path, source):
        return
    if path.is_dir() and not path.is_symlink():
        raise FileExistsError(f'{path} is a folder that this tool did not make; remove it or choose another --out')
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.part')
    temporary.symlink_to(source)
    temporary.replace(path)


def _part(root, out, work, converters, frames: list[str], training: bool, settings: tuple) -> Path:
    """First-version infos of a few frames, and their reduced point files; kept while the raw files stay the same."""
    import mmdet3d

    key = hashlib.sha256(repr((_VERSION, mmdet3d.__version__, str(root), training, settings)).encode())
    for frame in frames:
        for path in frame_files(root, frame, training).values():
            if path.is_file():
                state = path.stat()
                key.update(f'{path.name} {state.st_size} {state.st_mtime_ns}\n'.encode())
    path = work / f'{frames[0]}-{frames[-1]}-{key.hexdigest()[:16]}.json'
    folder = out / ('training' if training else 'testing') / 'velodyne_reduced'
    reduced = {frame: folder / f'{frame}.bin' for frame in frames}
    if load_part(path, reduced) is not None:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _scratch(work) as scratch, contextlib.redirect_stdout(io.StringIO()):
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
        listing = scratch / 'infos.pkl'
        write_bytes(listing, pickle.dumps(infos))
        converters.kitti._create_reduced_point_cloud(str(out), str(listing), str(scratch))
        empty = [frame for frame in frames if not (scratch / f'{frame}.bin').stat().st_size]
        if empty:
            raise ValueError(
                f'{len(empty)} frames have no point in the view of the camera, {root}: {", ".join(empty[:10])}; check '
                'P2, R0_rect and Tr_velo_to_cam in their calib files, or leave them out'
            )
        for frame in frames:
            (scratch / f'{frame}.bin').replace(reduced[frame])
    save_part(path, infos, reduced)
    return path


@contextlib.contextmanager
def _scratch(work: Path):
    """A folder of this process alone, gone afterwards; what a killed run left is removed, as ``out`` is locked."""
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob('scratch.*'):
        _remove(left)
    folder = Path(tempfile.mkdtemp(prefix='scratch.', dir=work))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _infos(parts: list[Path]) -> list[dict]:
    found = [load_part(part) for part in parts]
    if None in found:
        raise OSError(f'{parts[found.index(None)]} was changed while it was used; run the same command again')
    return [info for infos in found for info in infos]


def _write_infos(converters, parts: list[Path], work: Path, path: Path) -> None:
    """Join parts and bring them into the second version with mmdet3d's own updater."""
    with _scratch(work) as scratch:
        before, after = scratch / 'first', scratch / 'second'
        before.mkdir()
        after.mkdir()
        write_bytes(before / path.name, pickle.dumps(_infos(parts)))
        with contextlib.redirect_stdout(io.StringIO()):
            converters.update.update_kitti_infos(str(before / path.name), str(after))
        (after / path.name).replace(path)


def _write_database(converters, out: Path, work: Path, prefix: str, parts: list[Path], say) -> None:
    """The ground-truth database, in a folder of its own until it is complete; kept while the parts stay the same."""
    folder, infos = out / f'{prefix}_gt_database', out / f'{prefix}_dbinfos_train.pkl'
    wanted = dict(parts=[fingerprint(part) | {'name': part.name} for part in parts])
    found = read_marker(folder / _STAMP) or {}
    if infos.is_file() and found == wanted | _contents(folder, infos):
        return say('ground-truth database: up to date')
    from mmengine.registry import DefaultScope

    with _scratch(work) as scratch:
        new = scratch / 'database'
        with contextlib.redirect_stdout(io.StringIO()), DefaultScope.overwrite_default_scope('mmdet3d'):
            converters.database.create_groundtruth_database(
                'KittiDataset',
                str(out),
                prefix,
                f'{prefix}_infos_train.pkl',
                relative_path=False,
                database_save_path=str(new),
                db_info_save_path=str(scratch / 'dbinfos.pkl'),
            )
        infos.unlink(missing_ok=True)  # from here on until the last lines there is no database rather than a mixed one
        _remove(folder)
        new.rename(folder)
        (scratch / 'dbinfos.pkl').replace(infos)
    write_marker(folder / _STAMP, wanted | _contents(folder, infos))
    say(f'ground-truth database: {sum(1 for _ in folder.glob("*.bin"))} objects')


def _contents(folder: Path, infos: Path) -> dict:
    """Number and size of the objects, and size and time of the list of them."""
    sizes = [path.stat().st_size for path in folder.glob('*.bin')]
    return dict(objects=len(sizes), bytes=sum(sizes), infos=fingerprint(infos))


def _summary(parts: list[Path]) -> KittiSummary:
    objects, without_points, without_objects, frames = {}, {}, 0, 0
    for info in _infos(parts):
        frames += 1
        names = info.get('annos', {}).get('name', ())
        without_objects += not any(name in CLASSES for name in names)
        for name, count in zip(names, info.get('annos', {}).get('num_points_in_gt', ()), strict=True):
            if name in CLASSES:
                objects[str(name)] = objects.get(str(name), 0) + 1
                without_points[str(name)] = without_points.get(str(name), 0) + (count == 0)
    return KittiSummary(frames, objects, {name: int(n) for name, n in without_points.items() if n}, without_objects)
