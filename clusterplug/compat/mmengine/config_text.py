# SPDX-License-Identifier: Apache-2.0
"""Configs are written as readable Python in milliseconds: mmengine runs yapf over them for every checkpoint.

mmengine 0.10.7 formats the whole config when a run starts (three times) and again in each ``save_checkpoint``. For a
segmentation config yapf takes about two seconds a time on one core, which is longer than a step of a small model.
"""

import ast

from clusterplug.compat.workaround import Workaround

WIDTH = 100


def format_config(text: str) -> str:
    """Break the lines of a config, a Python text of assignments, at ``WIDTH`` columns; the values stay the same.

    Args:
        text: Python source without comments.

    Returns:
        str: The same program, one argument or element a line where a line would be too long.

    Raises:
        SyntaxError: When ``text`` is not Python.

    Example:
        >>> print(format_config("a=1;b=dict(c=[1,2],d='e')"), end='')
        a = 1
        b = dict(c=[1, 2], d='e')
    """
    lines = []
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            lines += _lines(statement.value, f'{ast.unparse(statement.targets[0])} = ', '', 0)
        else:
            lines.append(ast.unparse(statement))
    return '\n'.join(lines) + '\n'


def _lines(node: ast.expr, before: str, after: str, indent: int) -> list[str]:
    """Lines of one value, between the text before it (``'key='``) and after it (``','``)."""
    whole = ' ' * indent + before + ast.unparse(node) + after
    parts = _parts(node)
    if len(whole) <= WIDTH or not parts:
        return [whole]
    opening, elements, closing = parts
    lines = [' ' * indent + before + opening]
    for name, element in elements:
        lines += _lines(element, name, ',', indent + 4)
    return [*lines, ' ' * indent + closing + after]


def _parts(node: ast.expr) -> tuple[str, list[tuple[str, ast.expr]], str] | None:
    """Opening bracket, (name, value) of the elements and closing bracket; None for what cannot be broken."""
    if isinstance(node, ast.Call) and node.args + node.keywords:
        positional = [('', argument) for argument in node.args]
        named = [(f'{keyword.arg}=' if keyword.arg else '**', keyword.value) for keyword in node.keywords]
        return f'{ast.unparse(node.func)}(', positional + named, ')'
    if isinstance(node, ast.Dict) and node.keys and all(node.keys):
        return '{', [(f'{ast.unparse(key)}: ', value) for key, value in zip(node.keys, node.values)], '}'
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)) and node.elts:
        opening, closing = {ast.List: '[]', ast.Tuple: '()', ast.Set: '{}'}[type(node)]
        return opening, [('', element) for element in node.elts], closing
    return None


def patch(module):
    """Replace ``FormatCode`` of yapf in mmengine's config module; text that is not Python goes to yapf.

    ``pretty_text`` catches everything and says that the config cannot be formatted, Ctrl-C and the end that a signal
    asks for among it: a training that was stopped while a checkpoint was written ended as if its config were wrong.
    """
    host_format, host_text = module.FormatCode, vars(module.Config)['pretty_text']

    def FormatCode(text, *args, **kwargs):
        try:
            return format_config(text), True
        except SyntaxError:
            return host_format(text, *args, **kwargs)

    def pretty_text(self):
        try:
            return host_text.fget(self)
        except SyntaxError as error:
            cause: BaseException | None = error
            while isinstance(cause, Exception):
                cause = cause.__context__
            if cause is None:
                raise
            raise cause from None

    return [
        (module, 'FormatCode', FormatCode),
        (module.Config, 'pretty_text', property(pretty_text, doc=host_text.__doc__)),
    ]


WORKAROUND = Workaround(
    name='config_text',
    host='mmengine.config.config',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7 with yapf 0.43',
    until='mmengine keeps the formatted text, and catches errors of the format alone',
)
