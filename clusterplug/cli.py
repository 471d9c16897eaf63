# SPDX-License-Identifier: Apache-2.0
"""What ``tools/train.py`` and ``tools/test.py`` do: mmdet3d's options with mmdet3d's names, and this package's compat.

The tools themselves are a few lines, so that those of a checkout and those of an installed package are the same.
"""

import argparse
import difflib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clusterplug import compat
from clusterplug.compat.accelerator import has_accelerator
from clusterplug.compat.freed_memory import keep_freed_memory
from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.outputs import locked_folder
from clusterplug.user_errors import check_folder, check_packages, run_tool

__all__ = ['build_runner', 'check_folder', 'find_config', 'load_config', 'run_test', 'run_tool', 'run_train']

TASKS = ('mono_det', 'multi-view_det', 'lidar_det', 'lidar_seg', 'multi-modality_det')


def run_train(arguments: Sequence[str] | None = None) -> int:
    """Train the model of a config; returns the exit code (130 after Ctrl-C).

    Args:
        arguments: The command line without the program's name; by default the real one.
    """
    parser = _parser('Train a model.', 'train.py')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--sync_bn', choices=['none', 'torch', 'mmcv'], default='none',
        help='turn BatchNorm into SyncBatchNorm of torch or mmcv (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CKPT',
        help='continue from this checkpoint; without a value, from the last one in the work dir (default: start '
        'from the beginning)',
    )  # fmt: skip
    args = _parse(parser, arguments)
    from clusterplug.checkpoints import CheckpointFitHook

    config = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, args.ceph)
    if args.amp:
        _use_amp(config)
    if args.sync_bn != 'none':
        config.sync_bn = args.sync_bn
    if args.auto_scale_lr:
        _use_auto_scale_lr(config)
    if args.resume is not None:
        config.resume = True
        config.load_from = config.get('load_from') if args.resume == 'auto' else _existing(args.resume, '--resume')
    try:
        with work_folder(config):
            if args.resume == 'auto':
                go_on_from_newest(config)
            runner = build_runner(config)
            runner.register_hook(CheckpointFitHook(partial=not config.get('resume')))
            runner.train()
    except KeyboardInterrupt:
        return _report_stop(config.work_dir)
    return 0


def run_test(arguments: Sequence[str] | None = None) -> int:
    """Test a checkpoint on the test set of a config; returns the exit code (130 after Ctrl-C).

    Args:
        arguments: The command line without the program's name; by default the real one.
    """
    parser = _parser('Test (and evaluate) a model.', 'test.py')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--show', action='store_true', help='show each result in a window (needs a display)')
    parser.add_argument(
        '--show-dir', help='write a picture of each result into this folder of the work dir (default: none)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.1, help='score above which boxes are drawn, 0 to 1 (default: %(default)s)'
    )
    parser.add_argument('--task', choices=TASKS, default='lidar_seg', help='what is drawn (default: %(default)s)')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which a window is shown (default: %(default)s)'
    )
    parser.add_argument(
        '--submission', metavar='OUT',
        help="also write SemanticKITTI's server files, OUT/sequences/NN/predictions/*.label; OUT.zip: zipped as well "
        '(default: none)',
    )  # fmt: skip
    parser.add_argument('--tta', action='store_true', help='average over the augmentations of tta_pipeline')
    args = _parse(parser, arguments)
    from clusterplug.checkpoints import CheckpointFitHook

    config = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, args.ceph)
    config.load_from = _existing(args.checkpoint, 'CKPT')
    if args.show or args.show_dir:
        _use_pictures(config, args)
    if args.tta:
        _use_tta(config)
    if args.submission:
        _use_submission(config, args.submission)
    try:
        check_folder(config.work_dir, '--work-dir')
        runner = build_runner(config)
        runner.register_hook(CheckpointFitHook())
        runner.test()
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    return 0


def load_config(
    name: str, options: dict | None = None, work_dir: str | None = None, launcher: str = 'none', ceph: bool = False
):
    """Read a config, a path or ``package::path`` for a config inside an installed package, and set what all runs need.

    Args:
        name: ``configs/point_cluster/x.py``, ``clusterplug::point_cluster/x.py`` or ``mmdet3d::minkunet/x.py``.
        options: Values of ``--cfg-options``, dotted keys.
        work_dir: Where results go; else the config's own, else ``work_dirs/<config name>``.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        ceph: Whether files are read from a Ceph store.

    Returns:
        mmengine.config.Config: Ready for a Runner.

    Raises:
        FileNotFoundError: When there is no such config, with the names that are nearest.
    """
    compat.apply_all()
    from mmengine.config import Config

    import clusterplug.registry  # noqa: F401 (mmengine learns where clusterplug:: is)

    config = Config.fromfile(find_config(name))
    if ceph:
        from mmdet3d.utils import replace_ceph_backend

        config = replace_ceph_backend(config)
    config.launcher = launcher
    config.merge_from_dict(options or {})
    if work_dir is not None:
        config.work_dir = work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(name.rpartition('::')[2]).stem)
    return config


def find_config(name: str) -> str:
    """Path of a config that is named by a path or as ``package::path``.

    Raises:
        FileNotFoundError: When there is no such file, with the names that are nearest.
        ModuleNotFoundError: When the package is not installed.
    """
    package, separator, relative = name.rpartition('::')
    if not separator:
        path = Path(name)
        folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    else:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f'{name} names a config of {package}, which is not installed')
        home = Path(spec.submodule_search_locations[0])
        # A checkout that was never installed keeps its configs beside the package.
        folder = next((f for f in (home / '.mim' / 'configs', home.parent / 'configs') if f.is_dir()), home)
        path = folder / relative
    if path.is_file():
        return str(path)
    names = [found.relative_to(folder).as_posix() for found in folder.rglob('*.py')] if folder != Path() else []
    wanted = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.3)
    prefix = f'{package}::' if separator else f'{folder}/'
    hint = f'; nearest: {", ".join(prefix + found for found in near)}' if near else ''
    raise FileNotFoundError(f'no config {name}{hint}')


def _parser(description: str, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument('config', help='config file: a path, or package::path for one of an installed package')
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics (default: work_dirs/NAME_OF_THE_CONFIG)'
    )
    parser.add_argument('--ceph', action='store_true', help='read data from a Ceph store')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='replace values of the config: a.b=1 a.c=[1,2] a.d="[(1,2),(3,4)]"; paths are taken as they are: '
        "data_root='my data' (default: none)",
    )  # fmt: skip
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes (default: %(default)s)',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='rank on this machine, set by torch.distributed.launch (default: %(default)s)',
    )
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(arguments)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def _existing(path: str, option: str) -> str:
    # Addresses such as https:// or s3:// are left to mmengine.
    if '://' not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f'{option} must be a checkpoint file, got {path}, which does not exist')
    return os.path.expanduser(path)


def data_folders(config) -> list[str]:
    """Return the folders that the data sets of a config read, before anything is built: no output may lie in them."""
    found = {}
    for split in ('train', 'val', 'test'):
        dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while isinstance(dataset.get('dataset'), dict):  # RepeatDataset, CBGSDataset
            dataset = dataset['dataset']
        root, prefixes = dataset.get('data_root'), dataset.get('data_prefix')
        below = [each for each in (prefixes or {}).values() if isinstance(each, str)] or ['']
        found |= {os.path.join(root or '', each): None for each in below if root or each}
    return [folder for folder in found if os.path.isdir(folder)]


@contextmanager
def work_folder(config) -> Iterator[None]:
    """Hold the work folder of a training, so that a second one in it is refused; of several ranks the first does."""
    if not _is_first_rank(config.get('launcher', 'none')):
        yield
        return
    check_folder(config.work_dir, '--work-dir')
    with locked_folder(config.work_dir):
        yield


def _is_first_rank(launcher: str) -> bool:
    names = {'pytorch': ('RANK',), 'slurm': ('SLURM_PROCID',), 'mpi': ('OMPI_COMM_WORLD_RANK', 'PMI_RANK')}
    found = [os.environ[name] for name in names.get(launcher, ()) if name in os.environ]
    return not found or found[0] == '0'


def go_on_from_newest(config) -> None:
    """Let a training go on from the newest checkpoint of its work folder that can be read, if there is one.

    Raises:
        UnreadableCheckpoint: If the folder has checkpoints and none can be read.
    """
    from clusterplug.checkpoints import newest_readable

    hook = config.get('default_hooks', {}).get('checkpoint') or {}
    path, reasons = newest_readable(config.work_dir, hook.get('out_dir'))
    for reason in reasons:
        print(f'{reason}; going on from {path}', file=sys.stderr)
    if path is not None:
        config.resume, config.load_from = True, str(path)
    elif config.get('load_from') or (Path(config.work_dir) / 'last_checkpoint').is_file():
        config.resume = False  # mmengine would not load what the config starts from, or read an empty note


def _use_amp(config) -> None:
    kind = config.optim_wrapper.get('type', 'OptimWrapper')
    if kind == 'AmpOptimWrapper':
        return
    if kind != 'OptimWrapper':
        raise ValueError(f'--amp needs optim_wrapper.type OptimWrapper in the config, got {kind}')
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.loss_scale = 'dynamic'


def _use_auto_scale_lr(config) -> None:
    settings = config.get('auto_scale_lr') or {}
    if 'enable' not in settings or 'base_batch_size' not in settings:
        raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(enable=False, base_batch_size=...) in the config')
    config.auto_scale_lr.enable = True


def _use_pictures(config, args: argparse.Namespace) -> None:
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError("--show and --show-dir need default_hooks.visualization=dict(type='Det3DVisualizationHook')")
    hook.update(draw=True, vis_task=args.task, score_thr=args.score_thr)
    if args.task == 'lidar_seg':
        hook.setdefault('draw_gt', True)
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir:
        hook.update(test_out_dir=args.show_dir)


def _use_tta(config) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in config]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)} in the config')
    from mmengine.config import ConfigDict

    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = ConfigDict(**config.tta_model, module=config.model)


def _use_submission(config, out: str) -> None:
    evaluators = config.get('test_evaluator') or []
    evaluators = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    config.test_evaluator = [*evaluators, dict(type='clusterplug.SemanticKittiSubmission', out=out)]


def build_runner(config):
    """Build the Runner of a config from :func:`load_config`, on the CPU with memory kept between steps.

    Raises:
        ModuleNotFoundError: If the config needs packages that are not installed, with the lines that install them.
    """
    check_packages(config)
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    if not has_accelerator():
        keep_freed_memory()
    from clusterplug.hooks.label_check import LabelCheckHook

    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    if not any(isinstance(hook, LabelCheckHook) for hook in runner.hooks):
        runner.register_hook(LabelCheckHook())
    return runner


def _report_stop(work_dir: str) -> int:
    last = Path(work_dir) / 'last_checkpoint'
    where = f'the last checkpoint is {last.read_text()}; go on with --resume' if last.is_file() else 'no checkpoint yet'
    print(f'stopped: {where}', file=sys.stderr)
    return 130
