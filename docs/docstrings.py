# SPDX-License-Identifier: Apache-2.0
"""Extension of griffe: four habits of docstrings here, in the words that the page builder understands."""

import re
import textwrap

import griffe

SEVERAL = re.compile(r'^( +)((?:\w+, )+)(\w+): ', re.MULTILINE)
MATH = re.compile(r'^( *)\.\. math::[ ]*(.*)\n((?:\1 +.*\n|[ ]*\n)*)', re.MULTILINE)


def translate(text: str) -> str:
    """Bring a docstring into the form of the page builder.

    ``Example:`` becomes the section ``Examples:``, so that doctests are shown as code; a role such as
    ``:class:`~package.Name``` becomes `` `Name` ``; an equation becomes a block of text, because a renderer of
    equations would have to be loaded from another server. ``a, b: text`` becomes one line for each name.
    """
    text = SEVERAL.sub(_one_each, text)
    text = re.sub(r'^(\s*)Example:$', r'\1Examples:', text, flags=re.MULTILINE)
    text = re.sub(r':(?:class|func|mod|meth|attr):`~[\w.]*?(\w+)`', r'`\1`', text)
    text = re.sub(r':(?:class|func|mod|meth|attr):`([\w.]+)`', r'`\1`', text)
    return MATH.sub(_as_block, text + '\n').rstrip('\n')


def _one_each(match):
    margin, others, last = match.groups()
    lines = [f'{margin}{name}: as `{last}`.' for name in others.rstrip(', ').split(', ')]
    return '\n'.join([*lines, f'{margin}{last}: '])


def _as_block(match):
    margin, first, rest = match.groups()
    equation = '\n'.join(part for part in (first, textwrap.dedent(rest).strip('\n')) if part)
    return textwrap.indent(f'\n```text\n{equation}\n```\n\n', margin)


class Translate(griffe.Extension):
    """Translates the docstring of each module, class, function and attribute."""

    def on_object(self, *, obj, **kwargs):
        """Called for each of them before it is rendered."""
        if obj.docstring:
            obj.docstring.value = translate(obj.docstring.value)
