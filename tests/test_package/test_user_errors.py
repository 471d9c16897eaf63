# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can resolve: one sentence, exit code 1; others keep their traceback."""

import os
import sys

import pytest
import torch.distributed as dist

pytest.importorskip('mmengine')

from mmengine.config import Config

from clusterplug.core.outputs import locked_folder
from clusterplug.testing import run_forked
from clusterplug.user_errors import check_folder, check_packages, install_line, run_tool


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (FileNotFoundError('no config x.py'), 'tool: no config x.py'),
        (ValueError('one\ntwo'), 'tool: one two'),
        (KeyError('Foo is not in the mmdet3d::visualizer registry'), 'tool: KeyError: Foo is not in the'),
        (ModuleNotFoundError("No module named 'timm'", name='timm'), "pip install 'timm>=1.0'"),
        (ModuleNotFoundError("No module named 'open_clip.model'", name='open_clip.model'), 'open_clip_torch'),
        (ModuleNotFoundError("No module named 'mmengine'", name='mmengine'), "pip install 'mmengine>=0.10,<1.0'"),
    ],
)
def test_one_sentence(error, words, capsys):
    assert run_tool(raises(error), 'tool') == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count('\n') == 1
    assert 'Traceback' not in shown


def test_a_missing_package_behind_another_error_is_named(capsys):
    def run():
        try:
            raise ModuleNotFoundError("No module named 'spconv'", name='spconv.pytorch')
        except ModuleNotFoundError as error:
            raise TypeError('prod() received an invalid combination of arguments') from error

    assert run_tool(run, 'tool') == 1
    assert "pip install 'spconv>=2.3,<2.4'" in capsys.readouterr().err


def test_exit_codes_and_tracebacks(monkeypatch):
    assert run_tool(lambda: 7, 'tool') == 7
    pytest.raises(KeyboardInterrupt, run_tool, raises(KeyboardInterrupt()), 'tool')
    pytest.raises(SystemExit, run_tool, raises(SystemExit(2)), 'tool')
    monkeypatch.setenv('CLUSTERPLUG_TRACEBACK', '1')
    pytest.raises(ValueError, run_tool, raises(ValueError('x')), 'tool')


def test_a_run_that_went_well_leaves_its_process_group(tmp_path):
    """With the group open gloo's threads abort the process now and then, after all work is done."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert run_tool(raises(ValueError('x')), 'tool') == 1
        assert dist.is_initialized()  # other ranks may wait in a collective: they must see the process end
        assert run_tool(lambda: 3, 'tool') == 3
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_an_error_in_the_middle_of_a_training_keeps_its_traceback():
    from mmengine.runner.loops import EpochBasedTrainLoop

    class Broken(EpochBasedTrainLoop):
        def __init__(self):
            self._max_epochs, self._epoch = 1, 0

    pytest.raises(AttributeError, run_tool, Broken().run, 'tool')  # it has no runner


def test_folders(tmp_path, monkeypatch):
    check_folder(tmp_path / 'a' / 'b', '--out')
    assert (tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(NotADirectoryError, match=r'--out must be a folder, got .*file'):
            check_folder(path, '--out')
    (tmp_path / 'away').symlink_to(tmp_path / 'file')
    with pytest.raises(NotADirectoryError, match='away'):
        check_folder(tmp_path / 'away', '--out')
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match='--out must be a folder that can be written to'):
        check_folder(tmp_path / 'a', '--out')


@pytest.mark.parametrize(
    ('blocked', 'config', 'line'),
    [
        ('spconv', dict(model=dict(type='MinkUNet', backbone=dict(type='X', sparseconv_backend='spconv'))), 'spconv>='),
        ('mmdet3d', dict(default_scope='mmdet3d'), 'mmdet3d>='),
        ('mmdet', dict(model=dict(type='A', loss=[dict(type='mmdet.CrossEntropyLoss')])), 'mmdet>='),
        ('timm', dict(model=dict(backbone=dict(type='mmpretrain.TIMMBackbone'))), 'timm>='),
        ('open_clip', dict(model=dict(encoders=dict(type='clusterplug.OpenCLIPEncoders'))), 'open_clip_torch'),
        ('mmseg', dict(model=dict(type='mmseg.EncoderDecoder')), 'mmsegmentation'),
    ],
)
def test_packages_of_a_config(monkeypatch, blocked, config, line):
    class Nothing:
        def find_spec(self, name, path=None, target=None):
            if name.partition('.')[0] == blocked:
                raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    monkeypatch.setattr(sys, 'meta_path', [Nothing(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition('.')[0] == blocked]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=line):
        check_packages(Config(config))
    check_packages(Config(dict(model=dict(type='torch.nn.Linear'))))


def test_no_line_for_what_is_not_ours():
    assert install_line('nobodys_package') == ''
    assert install_line('sklearn.cluster').startswith("pip install 'scikit-learn")


def test_two_trainings_in_one_folder(tmp_path, capsys):
    from clusterplug import cli

    config = Config(dict(work_dir=str(tmp_path), launcher='none'))

    def second():
        return run_forked(lambda: run_tool(lambda: (cli.work_folder(config).__enter__() and 0) or 0, 'train'))

    with cli.work_folder(config):
        assert second() == 1
    assert second() == 0


@pytest.mark.parametrize(
    ('launcher', 'name'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_other_ranks_take_no_lock(tmp_path, monkeypatch, launcher, name):
    from clusterplug import cli

    monkeypatch.setenv(name, '1')
    config = Config(dict(work_dir=str(tmp_path / 'w'), launcher=launcher))
    with locked_folder(tmp_path / 'w'), cli.work_folder(config):
        pass
    monkeypatch.setenv(name, '0')
    with cli.work_folder(config):
        assert (tmp_path / 'w' / '.clusterplug.lock').exists()
