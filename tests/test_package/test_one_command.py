# SPDX-License-Identifier: Apache-2.0
"""``clusterplug COMMAND``: every tool by one command, with its options, exit codes and own --help."""

import sys

import pytest
from command_lines import ROOT, TOOLS

from clusterplug import __main__ as command_line
from clusterplug.__main__ import main


def test_every_tool_is_a_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for tool in TOOLS:
        if 'model_converters' not in tool:
            assert command_line._command((ROOT / tool).stem) in text


@pytest.mark.parametrize('words', [['prepare', 'moving-sprites'], ['generate', 'moving-sprites']])
def test_a_tool_runs_with_its_options_and_the_command_as_its_name(words, capsys):
    before = list(sys.argv)
    assert main([*words, '--help']) == 0
    assert f'usage: clusterplug {" ".join(words)}' in capsys.readouterr().out
    assert sys.argv == before


def test_the_exit_code_of_a_tool_is_that_of_the_command(capsys, tmp_path):
    assert main(['train', str(tmp_path / 'none.py')]) == 1
    assert 'none.py' in capsys.readouterr().err
    assert main(['train', '--no-such-option']) == 2


@pytest.mark.parametrize(
    ('words', 'hint'), [(['trian'], 'train'), (['prepare', 'kity'], 'prepare kitti'), (['doctr'], 'doctor')]
)
def test_a_command_that_is_not_there_names_the_nearest(words, hint, capsys):
    assert main(words) == 2
    assert f'did you mean {hint}' in capsys.readouterr().err
