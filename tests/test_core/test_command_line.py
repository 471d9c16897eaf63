# SPDX-License-Identifier: Apache-2.0
"""Options that tools share."""

from pathlib import Path

import pytest

from clusterplug.core.command_line import (
    add_counts,
    add_out,
    add_splits,
    exit_code,
    number,
    parse,
    tool_parser,
    whole_number,
)


def parser():
    made = tool_parser('Do it.\n\n    example', prog='tool')
    made.add_argument('source')
    add_out(made, 'folder')
    add_counts(made, dict(train=6, test=1), 'scans', train='--train')
    return made


@pytest.mark.parametrize(
    'words',
    ['S --out O', '--out O S', 'S O', 'S --num-train 3 O', '--num-train 3 S O', 'S O --num-train 3', 'S O --out O'],
)
def test_out_is_an_option_or_the_last_word(words):
    args = parse(parser(), words.split())
    assert (args.source, args.out) == ('S', Path('O'))
    assert args.num_train == (3 if '3' in words else 6)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('S', 'the following arguments are required: --out'),
        ('S O --out P', 'one place to write, please: got '),
        ('S O --num-test x', 'argument --num-test: invalid int'),
        ('S O P', 'unrecognized arguments: P'),
    ],
)
def test_what_cannot_be_read_ends_the_tool(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(parser(), words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_older_name_still_works():
    assert parse(parser(), ['S', 'O', '--train', '9']).num_train == 9


def test_splits_are_lists_and_out_may_have_a_default():
    made = tool_parser('Do it.')
    add_splits(made, dict(train='scans (default: all)', val='scans (default: none)'), 'SCANS')
    add_out(made, 'folder (default: that of the data)', required=False)
    args = parse(made, ['--train', '00', '01', '--val', '08'])
    assert (args.train, args.val, args.out) == (['00', '01'], ['08'], None)


@pytest.mark.parametrize(
    ('convert', 'good', 'bad'),
    [
        (whole_number(0, 51), {'0': 0, '51': 51}, ['-1', '52', '1.5', 'x', '']),
        (number(0.5, 2), {'0.5': 0.5, '2': 2.0}, ['0.4', '2.1', 'nan', 'inf', 'x']),
    ],
)
def test_numbers_have_bounds(convert, good, bad):
    assert {text: convert(text) for text in good} == good
    for text in bad:
        with pytest.raises(Exception, match=r'must be a .*number between .* and .*, got'):
            convert(text)


@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (None, 7, ''),
        (FileNotFoundError('no such folder'), 1, 'tool: NO SUCH FOLDER\n'),
        (ModuleNotFoundError('pip install x'), 1, 'tool: PIP INSTALL X\n'),
        (KeyboardInterrupt(), 130, 'stopped; go on\n'),
    ],
)
def test_exit_codes(error, code, said, capsys):
    def run():
        if error is not None:
            raise error
        return 7

    assert exit_code(run, name='tool', interrupted='go on', show=str.upper) == code
    assert capsys.readouterr().err == said


def test_an_error_of_the_code_is_not_hidden():
    with pytest.raises(TypeError):
        exit_code(lambda: 1 + 'a')
