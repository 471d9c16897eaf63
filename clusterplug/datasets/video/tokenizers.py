# SPDX-License-Identifier: Apache-2.0
"""Captions to token ids."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from clusterplug.core.files import whole_file
from clusterplug.datasets.video.tables import read_text


class CLIPTokenizer:
    """CLIP's byte-pair encoding, lower-cased: [start] words [end].

    Args:
        pretrained: Folder or public name of a transformers tokenizer that is on this machine. None:
            the vocabulary that open_clip brings along.
        context_length: Ids of the longest text the model takes. Defaults to 77.

    Raises:
        FileNotFoundError: The tokenizer is not on this machine.
        ModuleNotFoundError: Neither is installed.
        ValueError: The tokenizer has no start or no end token.

    Example:
        >>> CLIPTokenizer().encode('a dog', 8)
        [49406, 320, 1929, 49407, 0, 0, 0, 0]
    """

    def __init__(self, pretrained: str | None = None, context_length: int = 77):
        self.context_length = context_length
        if pretrained is None:
            try:
                from open_clip.tokenizer import SimpleTokenizer
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "CLIPTokenizer needs open_clip's vocabulary (pip install open-clip-torch), or pretrained=<folder "
                    'of a transformers CLIP tokenizer>'
                ) from error
            tokenizer = SimpleTokenizer()
            self._encode = tokenizer.encode
            self.start, self.end = tokenizer.sot_token_id, tokenizer.eot_token_id
            return
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
        except OSError as error:
            raise FileNotFoundError(
                f'no tokenizer {pretrained!r} on this machine; fetch it once with: hf download {pretrained}'
            ) from error
        self._encode = lambda text: tokenizer(text.lower(), add_special_tokens=False)['input_ids']
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self.start is None or self.end is None:
            raise ValueError(f'tokenizer {pretrained!r} must have a start and an end token, as that of CLIP has')

    def encode(self, text: str, max_words: int) -> list[int]:
        """Ids of a caption: start, at most ``max_words - 2`` tokens, end, zeros up to ``max_words``.

        Raises:
            ValueError: ``max_words`` is below 3 or above the context length.
        """
        if not 3 <= max_words <= self.context_length:
            raise ValueError(f'max_words must lie between 3 and {self.context_length}, got {max_words}')
        ids = [self.start, *self._encode(text)[: max_words - 2], self.end]
        return ids + [0] * (max_words - len(ids))

    def unknown_words(self, text: str) -> list[str]:
        """Words that the vocabulary lacks: none, since pairs of bytes spell every word."""
        return []


class WordTokenizer:
    """A vocabulary of whole words, for small models that are trained from nothing.

    Id 0 fills up, 1 is a word outside the vocabulary, 2 the start, the highest id the end.

    Args:
        vocabulary: Words, or a text file with one in each line, as :func:`words_of` returns
            them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No word, one twice, or one that no text can hold (capitals, punctuation).

    Example:
        >>> tokenizer = WordTokenizer(['circle', 'red'])
        >>> tokenizer.encode('A red circle.', 6), len(tokenizer)
        ([2, 1, 4, 3, 5, 0], 6)
    """

    def __init__(self, vocabulary: str | os.PathLike | Iterable[str]):
        if isinstance(vocabulary, str | os.PathLike):
            if not Path(vocabulary).is_file():
                raise FileNotFoundError(
                    f'no vocabulary {vocabulary}; write one from the captions of the training set with '
                    f'clusterplug.datasets.video.write_vocabulary'
                )
            vocabulary = read_text(vocabulary).split()
        words = list(vocabulary)
        if not words or len(set(words)) < len(words):
            raise ValueError(f'vocabulary must hold different words, at least one, got {len(words)}')
        odd = [word for word in words if words_of(word) != [word]]
        if odd:
            raise ValueError(f'vocabulary must hold words without capitals and punctuation, got {", ".join(odd[:5])}')
        self._ids = {word: index for index, word in enumerate(words, 3)}

    def __len__(self) -> int:
        return len(self._ids) + 4

    def encode(self, text: str, max_words: int) -> list[int]:
        """Ids of a caption, as :meth:`CLIPTokenizer.encode`."""
        if max_words < 3:
            raise ValueError(f'max_words must be at least 3, got {max_words}')
        ids = [2, *(self._ids.get(word, 1) for word in words_of(text)[: max_words - 2]), len(self) - 1]
        return ids + [0] * (max_words - len(ids))

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the vocabulary lacks; they all have id 1."""
        return [word for word in words_of(text) if word not in self._ids]


def words_of(text: str) -> list[str]:
    """Words of a text, lower-cased, without punctuation.

    Example:
        >>> words_of("A red circle, it's big.")
        ['a', 'red', 'circle', "it's", 'big']
    """
    return re.findall(r"[\w']+", text.lower())


def write_vocabulary(path: str | os.PathLike, captions: Iterable[str]) -> int:
    """Write the words of captions, sorted, one in each line; return their number.

    Raises:
        ValueError: The captions hold no word.
    """
    words = sorted({word for caption in captions for word in words_of(caption)})
    if not words:
        raise ValueError('captions must hold at least one word, got none')
    with whole_file(path, encoding='utf-8') as file:
        file.write('\n'.join(words) + '\n')
    return len(words)
