"""Texts made to break the reader: bombs, riddles, endless and unprintable ones. Each is answered in few words."""

from __future__ import annotations

import pytest

from dispatcher import config
from dispatcher.errors import ConfigurationInvalid
from tests.misconfigured import problems_of

MANY = 100_000
BOMBS = {
    "laughs": "a: &a [lol, lol]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    "merge": "base: &x {port: 1}\nserver:\n  <<: *x\n",
    "python": "a: !!python/object/apply:os.system ['id']\n",
    "python name": "server: !!python/name:os.system\n",
    "binary": "server: {host: !!binary aGVsbG8=}\n",
    "own tag": "server: !mine {port: 1}\n",
    "directive": "%TAG ! tag:evil,2000:\n---\nserver: !x {}\n",
    "deep": "[" * MANY,
    "deep maps": "{a: " * 1000,
    "many keys": "\n".join(f"k{n}: 1" for n in range(MANY)),
    "many models": f"models: [{'phi3:mini,' * 20_000}]",
    "many values": f"server: {{allowed_hosts: [{'a,' * MANY}]}}",
    "long tag": "a: " + "!" * MANY,
    "long key": "x" * MANY + ": 1",
    "long value": "policy: {margin_ratio: " + "x" * MANY + "}",
    "long word": "lifecycle: {provider: " + "x" * MANY + "}",
    "long host": "server: {host: " + "a." * MANY + "}",
    "long model": "models: [" + "x" * MANY + "]",
    "nul": 'history: {path: "a\\0b"}',
    "escape": 'server: {host: "\\e[31m"}',
    "surrogate": 'policy: {name: "\\ud800"}',
    "surrogate key": '{"\\ud800": 1}',
    "two documents": "server: {}\n...\n---\nserver: {}\n",
    "complex key": "? {a: b}\n: 1\n",
    "octal": "server: {port: 0o17}",
    "hexadecimal": "server: {port: 0x50}",
    "sexagesimal": "telemetry: {interval: 1:30}",
    "not a number": "policy: {margin_ratio: .NaN}",
    "infinite": "lifecycle: {idle: -.inf}",
    "infinite in a list": "policy: {weights_simple: [.inf, 0, 0]}",
    "not a number in a map": "models: [{name: phi3:mini, capabilities: {speed: nan}}]",
    "huge number": "lifecycle: {capacity: 9999999999999999999TiB}",
    "other digits": "server: {port: ٣٤}",
    "microseconds": "telemetry: {interval: 5us}",
    "bits": "lifecycle: {reserve: 3Gbit}",
    "wildcard": "server: {allowed_hosts: ['*']}",
    "a url as a host": "server: {allowed_hosts: ['http://a']}",
    "no host": "server: {host: '..'}",
    "a policy's name": "policy: {name: 'a b'}",
    "dwell": "lifecycle: {dwell: 5h}",
    "one client's share": "server: {limits: {connections: 10}}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_what_is_made_to_break_the_reader_is_refused_in_few_words(text):
    problems = problems_of(text)

    assert 0 < len(problems) <= 20_000
    assert [] == [problem for problem in problems if len(problem) > 1000 or "\n" in problem]
    "\n".join(problems).encode()  # and can be printed


@pytest.mark.parametrize(
    "name", ["dwell", "wildcard", "a url as a host", "a policy's name", "nul", "octal", "one client's share"]
)
def test_of_these_there_is_one_problem_and_it_names_the_line(name):
    (problem,) = problems_of(BOMBS[name])

    assert "(line 1): " in problem and ";" in problem


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    for content in (b"\x00\x01\x02", b"\xff\xfe" + "server: {}".encode("utf-16-le"), b"\x89PNG\r\n", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ConfigurationInvalid):
            config.load(path, {})


@pytest.mark.parametrize("name", ["\0", "a" * 300, "gone/none.yaml"])
def test_a_name_that_no_file_can_have_is_a_problem_too(tmp_path, name):
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        config.load(tmp_path / name, {})


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]", "10.0.0.1", "a-b.example", "fe80::1%eth0", "model_host"])
def test_a_host_that_can_be_listened_on_is_none_of_them(host):
    key = {"A_KEY": "k3y-0123456789-0123456789"}

    assert host == config.parse(f"server: {{host: '{host}', key_env: A_KEY}}", key).server.host
