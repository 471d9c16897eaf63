# SPDX-License-Identifier: Apache-2.0
"""Where answers of a chat model come from: a server with the chat-completions interface, or a model in this process."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import torch

from clusterplug.core.checks import check_number
from clusterplug.datasets.synthesis._calls import count_tokens
from clusterplug.datasets.synthesis.protocol import GeneratorUnavailable

__all__ = ['ChatEndpoint', 'TransformersChat']

_PATH = '/chat/completions'
_MOST_BYTES = 16 << 20
_AGAIN = {408, 409, 425, 429}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None  # the key would go to wherever the server says


class ChatEndpoint:
    """A server with the chat-completions interface (vLLM, llama.cpp, SGLang, Ollama, and hosted ones).

    Args:
        url: Base address such as ``'http://localhost:8000/v1'``, or several: each call goes to the one with the
            fewest errors, of these to the one that was asked least.
        model: Name of the model on the server.
        key_variable: Environment variable that holds the key, read at each call and never kept; None for no key.
        timeout: Seconds within which an answer must be complete.

    Raises:
        TypeError, ValueError: No http address, no model, a time of 0.

    Calls raise :class:`GeneratorUnavailable`: for time-outs, connection errors, statuses 408, 409, 425, 429 and 5xx,
    and bodies that are not JSON, ``again`` is True and a tree asks again; for other statuses it does not.

    Example:
        >>> chat = ChatEndpoint('http://localhost:8000/v1', 'my-model', timeout=30)
        >>> chat.identity
        'my-model'
    """

    def __init__(self, url: str | list[str], model: str, *, key_variable: str | None = None, timeout: float = 60.0):
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError('url must name at least one server, got none')
        for each in urls:
            parts = urllib.parse.urlsplit(each) if isinstance(each, str) else None
            if parts is None or parts.scheme not in ('http', 'https') or not parts.hostname:
                raise ValueError(f"url must be an http address such as 'http://localhost:8000/v1', got {each!r}")
        if not isinstance(model, str) or not model:
            raise TypeError(f'model must be the name of a model on the server, got {model!r}')
        self._urls = [
            each.rstrip('/') if each.rstrip('/').endswith(_PATH) else each.rstrip('/') + _PATH for each in urls
        ]
        self.model, self.identity, self._key = model, model, key_variable
        self.timeout = check_number(timeout, 'timeout', above=0.0)
        self._errors, self._asked, self._lock = [0] * len(urls), [0] * len(urls), threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, prompt: str, *, temperature: float, max_tokens: int, seed: int) -> str:
        """Ask one question; returns the text of the answer, '' where the server sent none."""
        with self._lock:
            index = min(range(len(self._urls)), key=lambda i: (self._errors[i], self._asked[i]))
            self._asked[index] += 1
        content = {
            'model': self.model,
            'messages': [{'role': 'user', 'content': prompt}],
            'temperature': temperature,
            'max_tokens': max_tokens,
            'seed': seed,
        }
        try:
            answer = self._send(self._urls[index], content)
        except GeneratorUnavailable:
            with self._lock:
                self._errors[index] += 1
            raise
        usage = answer.get('usage')
        found = [usage.get(name) if isinstance(usage, dict) else 0 for name in ('prompt_tokens', 'completion_tokens')]
        count_tokens(*(each if isinstance(each, int) else 0 for each in found))
        try:
            text = answer['choices'][0]['message']['content']
        except (KeyError, IndexError, TypeError):
            raise GeneratorUnavailable(f'{self._urls[index]} sent no message: {str(answer)[:120]}') from None
        return text if isinstance(text, str) else ''

    def _send(self, url: str, content: dict) -> dict:
        headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
        if self._key is not None:
            if not os.environ.get(self._key):
                raise GeneratorUnavailable(f'the environment variable {self._key} is not set; set it', again=False)
            headers['Authorization'] = f'Bearer {os.environ[self._key]}'
        request = urllib.request.Request(url, json.dumps(content).encode(), headers, method='POST')
        end, body = time.monotonic() + self.timeout, b''
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                while part := response.read1(1 << 16):
                    body += part
                    if time.monotonic() > end:
                        raise TimeoutError(f'no whole answer within {self.timeout:g} s')
                    if len(body) > _MOST_BYTES:
                        raise GeneratorUnavailable(f'{url} sent more than {_MOST_BYTES} bytes', again=False)
        except urllib.error.HTTPError as error:
            said = error.read(200).decode(errors='replace').strip()
            again = error.code in _AGAIN or error.code >= 500
            raise GeneratorUnavailable(f'{url} answers {error.code} {error.reason}: {said}', again) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, 'reason', None) or str(error) or type(error).__name__
            raise GeneratorUnavailable(f'{url}: {reason}') from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise GeneratorUnavailable(f'{url} sent no JSON object: {body[:120]!r}')
        return answer


class TransformersChat:
    """A causal language model of transformers in this process; questions are answered one after the other.

    Args:
        model: Such as ``AutoModelForCausalLM.from_pretrained(folder)``.
        tokenizer: Its tokenizer; with a chat template the question is one turn of the user.
        max_prompt: Tokens of a question that are used at most, the last ones.
        identity: Name of the model; None for ``model.name_or_path``.

    The global random state is left as it was.
    """

    def __init__(self, model, tokenizer, *, max_prompt: int = 4096, identity: str | None = None):
        if not callable(getattr(model, 'generate', None)) or not callable(tokenizer):
            raise TypeError(
                f'model must have generate() and tokenizer must be callable, got {type(model).__name__} and '
                f'{type(tokenizer).__name__}; take both from transformers'
            )
        self.model, self.tokenizer, self.max_prompt = model.eval(), tokenizer, max_prompt
        self.identity = identity or str(getattr(model, 'name_or_path', '') or type(model).__name__)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, path: str, *, device: str = 'cpu', max_prompt: int = 4096, **options) -> TransformersChat:
        """Read model and tokenizer of a folder, or of a name that transformers knows.

        Args:
            path: Folder or name.
            device: Of the model.
            max_prompt: As in the constructor.
            **options: Of ``AutoModelForCausalLM.from_pretrained``, such as ``dtype`` or ``gguf_file``.

        Raises:
            ImportError: transformers is not installed.
            OSError: There is no such model.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ImportError('this needs transformers; install it with: pip install transformers') from None
        same = {name: options[name] for name in ('gguf_file', 'revision') if name in options}
        model = AutoModelForCausalLM.from_pretrained(path, **options).to(device)
        return cls(model, AutoTokenizer.from_pretrained(path, **same), max_prompt=max_prompt, identity=str(path))

    def __call__(self, prompt: str, *, temperature: float, max_tokens: int, seed: int) -> str:
        """Ask one question; returns the text of the answer."""
        if getattr(self.tokenizer, 'chat_template', None):
            turns = [{'role': 'user', 'content': prompt}]
            prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        device = next(self.model.parameters()).device
        ids = self.tokenizer(prompt, return_tensors='pt')['input_ids'][:, -self.max_prompt :].to(device)
        sampling = dict(do_sample=True, temperature=temperature) if temperature > 0 else dict(do_sample=False)
        marks = (getattr(self.tokenizer, 'pad_token_id', None), getattr(self.tokenizer, 'eos_token_id', None))
        devices = [device] if device.type == 'cuda' else []
        with self._lock, torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                pad_token_id=next((each for each in marks if each is not None), 0),
                **sampling,
            )
        new = out[0, ids.shape[1] :]
        count_tokens(ids.shape[1], len(new))
        return self.tokenizer.decode(new, skip_special_tokens=True)
