# SPDX-License-Identifier: Apache-2.0
"""Every option of every command has a sentence, its default, and no marks of another language."""

import argparse
import re

import pytest
from command_lines import TOOLS, parser_of, with_subcommands

COMMANDS = [*TOOLS, 'clusterplug']
RST = re.compile(r'``|:(?:class|func|meth|mod|attr):|\.\. \w+::|`')
NO_SENTENCE = (argparse._HelpAction, argparse._VersionAction)


def default_of(text, action):
    """Return whether a help text says what holds when the option is not given."""
    if action.required or action.nargs == 0:
        return True
    if action.default is None or action.default in ({}, [], ()):
        return bool(re.search(r'default|without|required', text))
    values = action.default if isinstance(action.default, list | tuple) else [action.default]
    said = text[text.index('default') :] if 'default' in text else ''
    return all(re.search(rf'(?<![\w.]){re.escape(str(value))}(?![\w]|\.\d)', said) for value in values)


def faults(parser):
    """Return one line for every option without words, without its default, or with marks of RST."""
    found = []
    for each in with_subcommands(parser):
        for action in each._actions:
            name = f'{each.prog} {"/".join(action.option_strings) or action.dest}'
            if isinstance(action, NO_SENTENCE) or action.help == argparse.SUPPRESS:
                continue
            text = each._get_formatter()._expand_help(action) if action.help else ''
            if not re.search(r'[a-z]{2,}', re.sub(r'\(?default.*', '', text)):
                found.append(f'{name}: no sentence')
            elif action.option_strings and not default_of(text, action):
                found.append(f'{name}: no default {action.default}: {text}')
        found.extend(f'{each.prog}: mark of RST {mark}' for mark in RST.findall(each.format_help()))
    return found


def test_every_tool_is_looked_at():
    assert {'tools/train.py', 'tools/analysis_tools/compare.py', 'tools/model_converters/fec.py'} < set(TOOLS)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_of(command):
    parser = parser_of(command)
    assert parser.description
    assert faults(parser) == []


@pytest.mark.parametrize(
    ('options', 'fault'),
    [
        (dict(), 'no sentence'),
        (dict(default=5, help='(default: 5)'), 'no sentence'),
        (dict(default=5, help='rows at once'), 'no default'),
        (dict(default=5, help='rows at once (default: 50)'), 'no default'),
        (dict(default=[0, 1], help='seeds (default: 0)'), 'no default'),
        (dict(help='rows at once'), 'no default'),
        (dict(default=5, help='``rows`` at once (default: 5)'), 'mark of RST'),
    ],
)
def test_a_missing_word_is_found(options, fault):
    parser = argparse.ArgumentParser(prog='tool')
    parser.add_argument('--option', **options)
    assert any(fault in line for line in faults(parser))


def test_good_words_are_accepted():
    parser = argparse.ArgumentParser(prog='tool')
    parser.add_argument('--rows', default=5, help='rows at once (default: %(default)s)')
    parser.add_argument('--seeds', nargs='+', default=[0, 1], help='seeds of the runs (default: 0 1)')
    parser.add_argument('--fast', action='store_true', help='skip the check')
    assert faults(parser) == []
