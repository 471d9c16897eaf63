# SPDX-License-Identifier: Apache-2.0
"""Language models as generators: a server that fails in every way, and a model in this process."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from clusterplug.datasets.synthesis import (
    AttributeGenerator,
    ChatEndpoint,
    ChatGenerator,
    GeneratorUnavailable,
    InvalidAnswer,
    PartitionTree,
    TransformersChat,
    build_generator,
    find_json,
)

WORDS = {'color': ['red', 'green', 'blue'], 'size': ['small', 'large']}


def answer_to(prompt, seed):
    """What a model that understands the prompts says about things of a color and a size."""
    rng, conditions = np.random.default_rng(seed), dict(re.findall(r'^- (color|size): (\w+)$', prompt, re.M))
    lines = re.findall(r'^\d+\. (\w+) (\w+)$', prompt, re.M)
    if 'Write' in prompt:
        number = int(re.search(r'Write (\d+)', prompt)[1])
        drawn = AttributeGenerator(WORDS).draw(number, rng, conditions)
        return 'Sure:\n```json\n' + json.dumps([f'{each["size"]} {each["color"]}' for each in drawn]) + '\n```'
    if 'exactly one dimension' in prompt:
        place, name = (0, 'size') if 'not one of: color' in prompt else (1, 'color')
        groups = {}
        for index, line in enumerate(lines, start=1):
            groups.setdefault(line[place], []).append(index)
        return json.dumps({'dimension': name, 'attributes': groups})
    if 'are missing' in prompt:
        name = re.search(r'dimension "(\w+)"', prompt)[1]
        missing = [value for value in WORDS[name] if f'- {value}' not in prompt]
        return json.dumps([*missing, 'complete']) if missing else 'null'
    place = 1 if 'value of "color"' in prompt else 0
    return json.dumps([line[place] for line in lines])


class Server:
    """A chat-completions server on this machine; ``faults`` come before the right answers, one a request."""

    def __init__(self):
        self.faults, self.requests, outer = [], [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}/v1'
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers['Content-Length'])))
        self.requests.append((handler.path, dict(handler.headers), body))
        fault = self.faults.pop(0) if self.faults else None
        text, status = answer_to(body['messages'][0]['content'], body['seed']), 200
        if isinstance(fault, str):
            text = fault
        if isinstance(fault, int):
            status = fault
        content = {
            'choices': [{'message': {'content': text}}],
            'usage': {'prompt_tokens': 7, 'completion_tokens': 3},
        }
        payload = json.dumps(content).encode()
        if isinstance(fault, bytes):
            payload = fault
        if callable(fault):
            return fault(handler)
        handler.send_response(status)
        if status in (302, 307):
            handler.send_header('Location', self.url)
        handler.send_header('Content-Length', str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


def hang(handler):
    time.sleep(0.6)


def close(handler):
    handler.connection.close()


def drip(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', '100000')
    handler.end_headers()
    for _ in range(8):
        handler.wfile.write(b' ')
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.fixture
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def chat_of(server, **options):
    return ChatGenerator('A thing.', ChatEndpoint(server.url, 'stub', **{'timeout': 20, **options}))


def test_a_tree_of_a_server(server):
    generator = chat_of(server)
    tree = PartitionTree(2).grow(generator)
    combinations = {(leaf.description()['color'], leaf.description()['size']) for leaf in tree.leaves}
    assert combinations == {(color, size) for color in WORDS['color'] for size in WORDS['size']}
    found = tree.generate(n_per_leaf=3)
    assert [text.split() for text in found.samples] == [[d['size'], d['color']] for d in found.descriptions]
    routed = tree.route(found.samples)
    assert routed.leaf.tolist() == found.leaf
    assert tree.cost.steps['route'] == 2 + 3  # 18 texts at the root, 6 in each of three nodes, 10 a question
    assert tree.cost.tokens == (7 * tree.cost.calls, 3 * tree.cost.calls)
    path, headers, body = server.requests[0]
    assert path == '/v1/chat/completions'
    assert 'Authorization' not in headers
    assert (body['model'], body['temperature'], body['max_tokens']) == ('stub', 0.7, 1024)
    assert {each[2]['temperature'] for each in server.requests} == {0.3, 0.7, 1.0}


TEXTS = [
    'I would rather not.',
    '',
    '{"dimension": "color"',
    '[]',
    '[1, 2]',
    '{"dimension": "color", "attributes": {"red": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "blue": [10]}}',
    '["red", "blue"]',
    'null null',
]
FAULTS = [500, 503, 429, 408, b'<html>busy</html>', b'[]', b'{"error": "x"}', b'', hang, close, drip]


@pytest.mark.parametrize('workers', [1, 3])
def test_nothing_is_lost_to_a_bad_server(server, tmp_path, workers):
    whole = PartitionTree(2).grow(chat_of(server))
    expected = whole.generate(n_per_leaf=2)
    server.faults = [fault for pair in zip(FAULTS, [None] * len(FAULTS)) for fault in pair]
    tree = PartitionTree(2, pause=0.0).grow(chat_of(server, timeout=0.5), folder=tmp_path, workers=workers)
    assert tree.generate(n_per_leaf=2, folder=tmp_path, workers=workers) == expected
    assert tree.to_text() == whole.to_text()
    assert tree.cost.unavailable >= len(FAULTS) - 1
    assert tree.cost.invalid == 0


def test_texts_that_cannot_be_used_are_asked_for_again(server):
    for text in TEXTS:
        for place in range(3):
            server.faults = [*[None] * place, text]
            tree = PartitionTree(1).grow(chat_of(server))
            assert len(tree.leaves) == 3, (text, place)
            if (text, place) != ('null null', 2):
                assert tree.cost.invalid == 1, (text, place)


def test_an_outage_stops_the_run_and_the_next_one_goes_on(server, tmp_path):
    whole = PartitionTree(2).grow(chat_of(server))
    server.faults, before = [None, None, *[500] * 3], len(server.requests)
    with pytest.raises(GeneratorUnavailable, match='answers 500'):
        PartitionTree(2, retries=2, pause=0.0).grow(chat_of(server), folder=tmp_path)
    assert not PartitionTree.load(tmp_path).is_complete
    tree = PartitionTree(2, retries=2, pause=0.0).grow(chat_of(server), folder=tmp_path)
    assert tree.to_text() == whole.to_text()
    assert len(server.requests) - before == whole.cost.calls + 3 == tree.cost.calls


@pytest.mark.parametrize('status', [400, 401, 404, 307, 302])
def test_a_refusal_is_not_repeated(server, status):
    server.faults, tree = [status], PartitionTree(1)
    with pytest.raises(GeneratorUnavailable, match=str(status)):
        tree.grow(chat_of(server))
    assert len(server.requests) == 1  # and a redirect is not followed


def test_keys_come_from_the_environment_and_stay_there(server, monkeypatch, tmp_path):
    monkeypatch.setenv('STUB_KEY', 'secret-word')
    tree = PartitionTree(1).grow(chat_of(server, key_variable='STUB_KEY'), folder=tmp_path)
    assert server.requests[0][1]['Authorization'] == 'Bearer secret-word'
    assert all(b'secret-word' not in path.read_bytes() for path in tmp_path.iterdir())
    assert tree.is_complete
    monkeypatch.delenv('STUB_KEY')
    with pytest.raises(GeneratorUnavailable, match='STUB_KEY is not set'):
        PartitionTree(1).grow(chat_of(server, key_variable='STUB_KEY'))


def test_calls_go_to_the_server_with_the_fewest_errors(server):
    other = Server()
    try:
        other.faults = [500] * 100
        chat = ChatEndpoint([other.url, server.url + '/chat/completions/'], 'stub')
        PartitionTree(2, pause=0.0).grow(ChatGenerator('A thing.', chat))
        assert len(other.requests) == 1
        assert len(server.requests) >= 12
    finally:
        other.http.shutdown()
        other.http.server_close()


def test_no_server_at_all():
    chat = ChatEndpoint('http://127.0.0.1:9/v1', 'stub', timeout=0.5)
    with pytest.raises(GeneratorUnavailable, match='does not answer'):
        PartitionTree(1, retries=1, pause=0.0).grow(ChatGenerator('A thing.', chat))


def test_json_is_found_in_text():
    assert find_json('a [1] b {"c": [2]}') == [1]
    assert find_json('a [1] b {"c": [2]}', dict) == {'c': [2]}
    assert find_json('{"a": "} [" }') == {'a': '} ['}
    assert find_json('{broken {"a": 1}') == {'a': 1}
    for text in ('', 'a', '{', '[' * 100_000, '{"a": 1, "a": 2}'):
        with pytest.raises(InvalidAnswer):
            find_json(text)


def tiny_model():
    transformers = pytest.importorskip('transformers')
    tokenizers = pytest.importorskip('tokenizers')
    words = ['[UNK]', '[EOS]', 'red', 'blue', '[', ']', '"', ',', '{', '}', ':', '1', 'color', 'A', 'thing', '.']
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='[UNK]')
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='[EOS]', unk_token='[UNK]')
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=1, bos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config), fast


@pytest.mark.slow
def test_a_model_that_babbles_ends_within_the_bound():
    model, tokenizer = tiny_model()
    chat = TransformersChat(model, tokenizer, max_prompt=256, identity='tiny')
    before = torch.get_rng_state()
    options = dict(temperature=1.0, max_tokens=12, seed=3)
    first = chat('A thing .', **options)
    assert chat('A thing .', **options) == first
    assert {chat('A thing .', **{**options, 'seed': seed}) for seed in range(5)} != {first}
    assert chat('A thing .', temperature=0.0, max_tokens=4, seed=0) == chat(
        'A thing .', temperature=0.0, max_tokens=4, seed=1
    )
    assert torch.equal(torch.get_rng_state(), before)
    tree = PartitionTree(2).grow(ChatGenerator('A thing.', chat, max_tokens=12))
    assert tree.is_complete
    assert tree.cost.calls <= tree.calls_per_node * sum(1 for _ in tree.root.walk())
    assert tree.cost.tokens[0] > 0
    found = tree.generate()
    assert sum(found.missing.values()) + len(found.samples) == 10 * len(tree.leaves)


def test_generators_from_configs():
    chat = dict(type='ChatEndpoint', url='http://localhost:1/v1', model='m')
    assert build_generator(dict(type='ChatGenerator', task='A thing.', chat=chat)).chat.model == 'm'
    found = build_generator(dict(type='CallableGenerator', samples='json:dumps', attributes={'a': [1]}))
    assert found.identity.startswith('dumps')
    assert build_generator(dict(type='LidarCityGenerator')).attributes['beams'] == [64, 32, 16]


@pytest.mark.parametrize(
    ('call', 'error', 'text'),
    [
        (lambda: ChatEndpoint('localhost:8000', 'm'), ValueError, 'http address'),
        (lambda: ChatEndpoint('file:///etc/passwd', 'm'), ValueError, 'http address'),
        (lambda: ChatEndpoint([], 'm'), ValueError, 'at least one'),
        (lambda: ChatEndpoint('http://x', ''), TypeError, 'model'),
        (lambda: ChatEndpoint('http://x', 'm', timeout=0), ValueError, 'timeout'),
        (lambda: ChatGenerator('', print), TypeError, 'task'),
        (lambda: ChatGenerator('x', 3), TypeError, 'chat'),
        (lambda: ChatGenerator('x', print, creative=3), ValueError, 'creative'),
        (lambda: TransformersChat(3, print), TypeError, 'generate'),
        (lambda: build_generator(3), TypeError, 'dict'),
        (lambda: build_generator(dict(type='Lidar')), ValueError, 'LidarCityGenerator'),
        (lambda: build_generator(dict(type='ChatGenerator', task='x')), TypeError, 'ChatEndpoint'),
        (lambda: build_generator(dict(type='CallableGenerator', samples='json')), ValueError, 'module:function'),
        (lambda: build_generator(dict(type='CallableGenerator', samples='json:no')), ValueError, 'no function'),
        (lambda: build_generator(dict(type='LidarCityGenerator', attributes={'x': [1]})), ValueError, 'setting'),
        (
            lambda: build_generator(dict(type='LidarCityGenerator', attributes={'weather': ['hail']})),
            ValueError,
            'clear',
        ),
    ],
)
def test_bad_input_of_generators(call, error, text):
    with pytest.raises(error, match=text):
        call()
