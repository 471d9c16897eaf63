# SPDX-License-Identifier: Apache-2.0
"""``--cfg-options KEY=VALUE``: values as mmengine reads them, and paths exactly as they were given."""

import argparse
import re

# names that hold a path, by the last part of a key; drop_path is a rate
_PATH = re.compile(r'(?!drop_path$)(\w+_)?(root|path|file|dir|folder|prefix|checkpoint)|load_from|out|data_prefix\.\w+')
_WORD = re.compile(r'[\w.+:*%-]*')
_PAIRS = {'[': ']', '(': ')'}


class ConfigOptions(argparse.Action):
    """Collect ``KEY=VALUE`` arguments into a dict, in place of mmengine's ``DictAction``.

    Numbers, ``True``, ``False``, ``None``, ``[a, b]``, ``(a, b)``, ``a,b`` and nested lists mean what they mean in
    mmengine. **Differs from it**: blanks inside a value stay; a value in quotes is that text; the value of a key such
    as ``data_root``, ``ann_file``, ``work_dir``, ``info_path``, ``load_from`` or ``data_prefix.pts`` is a path, taken
    as it is (``None``, ``True`` and ``False`` apart); a text with a comma is a list only where its parts are plain
    words. mmengine removes all blanks and quotes.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        options = dict(getattr(namespace, self.dest, None) or {})
        for text in values or ():
            key, equals, value = text.partition('=')
            if not equals or not key.strip():
                parser.error(f'{option_string} needs KEY=VALUE, got {text!r}; put quotes around a value with blanks')
            try:
                options[key.strip()] = parse_value(key.strip(), value)
            except ValueError as error:
                parser.error(f'{option_string} {key}: {error}')
        setattr(namespace, self.dest, options)


def parse_value(key: str, text: str):
    """Value of one option.

    Raises:
        ValueError: Brackets that do not match inside a list, or a ``dict(...)``, which needs a config file.

    Example:
        >>> parse_value('data_root', 'my data, 2'), parse_value('lr', '1e-3'), parse_value('betas', '(0.9, 0.99)')
        ('my data, 2', 0.001, (0.9, 0.99))
    """
    if _PATH.fullmatch('.'.join(key.split('.')[-2:])) or _PATH.fullmatch(key.rpartition('.')[2]):
        return _path(text)
    inner = _quoted(text.strip())
    if inner is not None:
        return _value(inner) if _bracketed(inner) else inner
    return _value(text)


def _path(text: str):
    inner = _quoted(text.strip())
    if inner is not None:
        return inner
    if text in ('None', 'True', 'False'):
        return _scalar(text)
    # a list of files; one name in brackets is a name
    return _value(text) if _bracketed(text) and len(_split(text[1:-1])) > 1 else text


def _value(text: str):
    stripped = text.strip()
    if _bracketed(stripped):
        items = [_item(part) for part in _split(stripped[1:-1])]
        return tuple(items) if stripped[0] == '(' else items
    parts = text.split(',')
    if len(parts) > 1 and all(_WORD.fullmatch(part.strip()) for part in parts):
        return [_item(part) for part in (parts[:-1] if not parts[-1].strip() else parts)]
    if len(parts) > 1 and (stripped[:1] in _PAIRS or stripped[-1:] in _PAIRS.values()) and _balanced(text):
        parts = _split(text)  # (1,2),(3,4)
        if all(_bracketed(part.strip()) for part in parts):
            return [_item(part) for part in parts]
    return _scalar(text)


def _item(text: str):
    text = text.strip()
    inner = _quoted(text)
    if inner is not None:
        return inner
    if re.match(r'dict\s*\(|\{', text):
        raise ValueError(f'a dict cannot be given here, got {text!r}; write a config file with _base_ for it')
    return _value(text) if _bracketed(text) else _scalar(text)


def _scalar(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)


def _quoted(text: str) -> str | None:
    """Content of a text in one pair of quotes, None if it is not one."""
    whole = len(text) >= 2 and text[0] == text[-1] and text[0] in '\'"'
    return text[1:-1] if whole and text[0] not in text[1:-1] else None


def _bracketed(text: str) -> bool:
    """Whether the first bracket of a text is closed by its last character."""
    if len(text) < 2 or _PAIRS.get(text[0]) != text[-1]:
        return False
    return _balanced(text[1:-1])


def _balanced(text: str) -> bool:
    open_, quote = [], ''
    for char in text:
        if quote:
            quote = '' if char == quote else quote
        elif char in '\'"':
            quote = char
        elif char in _PAIRS:
            open_.append(_PAIRS[char])
        elif char in _PAIRS.values() and (not open_ or open_.pop() != char):
            return False
    return not open_ and not quote


def _split(text: str) -> list[str]:
    """Parts between the commas that are in no brackets and no quotes."""
    parts, depth, quote = [''], 0, ''
    for char in text:
        if quote:
            quote = '' if char == quote else quote
        elif char in '\'"':
            quote = char
        elif char in '[(':
            depth += 1
        elif char in '])':
            depth -= 1
        elif char == ',' and not depth:
            parts.append('')
            continue
        parts[-1] += char
    return [part for part in parts if part.strip()] if not parts[-1].strip() else parts
