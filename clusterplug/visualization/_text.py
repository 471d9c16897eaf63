# SPDX-License-Identifier: Apache-2.0
"""Text of users in pictures: drawn as it is, never read as mathematics or TeX."""

from clusterplug.visualization.colors import class_name

# For every text of matplotlib: a caption may hold dollars and backslashes.
PLAIN = dict(parse_math=False, usetex=False)


def plain(text: str, length: int = 90) -> str:
    """Return a text on one line, of a limited length, of characters that a font can be asked for.

    Example:
        >>> plain('a \\n dog', 4)
        'a d…'
    """
    line = ' '.join(str(text).encode('utf-8', 'replace').decode().split())
    line = ''.join(character if character.isprintable() else '?' for character in line)
    return line if len(line) <= length else f'{line[: length - 1]}…'


def plain_legend(legend) -> None:
    """Have the entries of a legend drawn as they are."""
    for text in legend.get_texts():
        text.set(**PLAIN)


def label(name: str) -> str:
    """Return the name of a legend's entry; matplotlib leaves out what begins with an underscore."""
    name = plain(class_name(name))
    return f' {name}' if name.startswith('_') else name
