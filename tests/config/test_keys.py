"""Keys: where they may come from, what is wrong with one, and that none is ever told."""

from __future__ import annotations

import os
from hashlib import sha256

import pytest

from dispatcher import config
from dispatcher.config.keys import Secret
from dispatcher.errors import ConfigurationInvalid
from tests.misconfigured import problems_of

KEY = "k3y-0123456789-0123456789"
SHORT = "s3cr3t"
ENVIRON = {
    "A_KEY": KEY,
    "B_KEY": KEY + "-b",
    "SHORT_KEY": SHORT,
    "SPACED_KEY": "two words are no key",
    "EMPTY_KEY": " ",
}


def keys_of(text: str) -> list[tuple[str, str, bytes]]:
    return [(key.name, key.role, key.digest) for key in config.parse(text, ENVIRON).server.keys]


def digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def test_keys_come_with_their_roles_as_digests(tmp_path):
    (tmp_path / "key").write_text(KEY + "-of-a-file\nanother line\n")
    text = (
        "server:\n  key_env: A_KEY\n  keys:\n"
        "  - {name: n8n, key_env: B_KEY}\n"
        f"  - {{name: operator, role: admin, key_file: {tmp_path}/key}}\n"
    )

    expected = [
        ("n8n", "infer", digest(KEY + "-b")),
        ("operator", "admin", digest(KEY + "-of-a-file")),
        ("default", "admin", digest(KEY)),
    ]
    assert expected == keys_of(text)


def test_any_key_opens_the_daemon_to_other_machines():
    assert 1 == len(keys_of("server: {host: 0.0.0.0, keys: [{name: n8n, key_env: A_KEY}]}"))


def test_the_variable_of_a_key_may_be_called_like_a_setting():
    settings = config.parse("server: {keys: [{name: n8n, key_env: DISPATCHER_N8N}]}", {"DISPATCHER_N8N": KEY})

    assert "DISPATCHER_N8N" == settings.server.keys[0].key_env


PROBLEMS = [
    ("server: {key_env: SHORT_KEY}", "server.key_env (line 1): the environment variable SHORT_KEY: its key is shorter"),
    ("server: {key_env: EMPTY_KEY}", "server.key_env (line 1): the environment variable EMPTY_KEY is not set; export"),
    (
        "server: {keys: [{name: a, key_env: SPACED_KEY}]}",
        "server.keys[0].key_env (line 1): the environment variable SP",
    ),
    (
        "server: {keys: [{name: a, key_env: NO_KEY}]}",
        "server.keys[0].key_env (line 1): the environment variable NO_KEY",
    ),
    ("server: {keys: [{name: a}]}", "server.keys[0] (line 1): not both of key_env and key_file, and not neither; "),
    ("server: {keys: [{name: a, key_env: A_KEY, key_file: b}]}", "server.keys[0] (line 1): not both of key_env"),
    ("server: {keys: [{name: a, key_file: /none}]}", "server.keys[0].key_file (line 1): the file /none cannot be read"),
    (
        "server: {keys: [{name: a, key_file: /tmp}]}",
        "server.keys[0].key_file (line 1): the file /tmp: a directory, not",
    ),
    (
        "server: {keys: [{name: a, role: root, key_env: A_KEY}]}",
        "server.keys[0].role (line 1): this is none of infer, admin",
    ),
    (
        "server: {keys: [{key_env: A_KEY}]}",
        "server.keys[0] (line 1): a key has a name, a role, and key_env or key_file",
    ),
    ("server: {keys: {a: b}}", "server.keys (line 1): expected a list of keys; write each as `- {"),
    ("server: {keys: [{name: a b, key_env: A_KEY}]}", "server.keys[0].name (line 1): this cannot name a key; write up"),
    (
        "server:\n  keys:\n  - {name: a, key_env: A_KEY}\n  - {name: a, key_env: B_KEY}",
        "server.keys[1].name (line 4): this is the name of server.keys[0] already",
    ),
    (
        "server:\n  keys:\n  - {name: a, key_env: A_KEY}\n  - {name: b, key_env: A_KEY}",
        "server.keys[1] (line 4): this is the key of server.keys[0] again",
    ),
    (
        "server: {key_env: A_KEY, keys: [{name: default, key_env: B_KEY}]}",
        "server.key_env (line 1): default is the nam",
    ),
]


@pytest.mark.parametrize(("text", "begins"), PROBLEMS)
def test_one_mistake_with_a_key_is_one_problem(text, begins):
    (problem,) = problems_of(text, ENVIRON)

    assert begins == problem[: len(begins)]
    assert "; " in problem


@pytest.mark.parametrize(
    "text",
    [
        "server: {key: %s}",
        "server: {key_env: %s}",
        "server: {keys: [%s]}",
        "server: {keys: [{name: a, key: %s}]}",
        "server: {keys: [{name: a, key_env: %s}]}",
        "server: {keys: {a: %s}}",
        "server: {keys: {%s: a}}",
        "server: {keys: [{name: a, role: %s, key_env: A_KEY}]}",
        "server: {keys: [{name: a, key_file: %s}]}",
        "server: {keys: [{name: a, key_file: ./%s}]}",
        "server: {keys: [{name: a, key_file: A_KEY, %s}]}",
        "server: {keys: [{name: a, key_file: A_KEY, %s: 1, %s: 2}]}",
        "server: {keys: [{name: a, key_env: !%s}]}",
        "server: {keys: [{name: a, key_env: '!%s!x'}]}",
        "server: {keys: [{name: a, key_env: !%s!x }]}",
        "server: {keys: [{name: a, key_env: &%s }]}",
        "server: {keys: [{name: a, key_env: *%s }]}",
        "server: {keys: [{name: %s, key_env: A_KEY}, {name: %s, key_env: B_KEY}]}",
        "telemetry: {prometheus: {headers: {%s}}}",
        "telemetry: {prometheus: {headers: {Bearer %s: }}}",
        "telemetry: {prometheus: {headers: {Bearer %s: 1}}}",
        "telemetry: {prometheus: {headers: {X-Tenant: [%s]}}}",
        'telemetry: {prometheus: {headers: {X-Tenant: "\u65e5%s"}}}',
        "telemetry: {prometheus: {headers_env: {%s: 1}}}",
        "telemetry: {prometheus: {headers_env: {Bearer %s: NOT_SET}}}",
        "telemetry: {prometheus: {headers_env: %s}}",
        "telemetry: {prometheus: {headers_env: {Authorization: %s}}}",
        "telemetry: {prometheus: {headers: {Authorization: %s}}}",
        'telemetry: {prometheus: {headers: {X-Tenant: "a\\n%s"}}}',
        "lifecycle: {ollama_url: 'http://me:%s@a'}",
    ],
)
@pytest.mark.parametrize("secret", ["hunter2-Hunter2-hunter2", "4F2A99C0B7D1E8A35566"])
def test_a_secret_in_the_wrong_place_is_not_repeated(text, secret):
    assert secret not in "".join(problems_of(text.replace("%s", secret), ENVIRON))


def test_a_key_file_is_told_by_its_name_when_it_looks_like_one(tmp_path):
    (tmp_path / "4F2A99C0B7D1E8A35566").write_text("short")

    (there,) = problems_of(f"server: {{keys: [{{name: a, key_file: {tmp_path}/4F2A99C0B7D1E8A35566}}]}}")
    (gone,) = problems_of("server: {keys: [{name: a, key_file: secrets/key}]}")

    assert f"the file {tmp_path}/4F2A99C0B7D1E8A35566: its key is shorter" in there
    assert "the file named here cannot be read (No such file or directory)" in gone


@pytest.mark.parametrize(
    ("value", "because"),
    [
        ("Bearer abc\nX-Other: 1", "a line break in it"),
        ("Bearer abc\rX", "a line break in it"),
        ("Bearer \N{CJK UNIFIED IDEOGRAPH-65E5}", "a character that no header can carry in it"),
        ("Bearer \udcff", "a character that no header can carry in it"),
        ("Bearer \x07", "a character that no header can carry in it"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_refused_before_it_is_sent(value, because):
    text = "telemetry: {prometheus: {headers_env: {Authorization: PROM_AUTH}}}"

    (problem,) = problems_of(text, {"PROM_AUTH": value})

    assert f"headers_env (line 1): Authorization: the environment variable PROM_AUTH has {because}; write" in problem
    assert "Bearer" not in problem


@pytest.mark.parametrize("value", ["Bearer abc\n", "Bearer abc\r\n", " Bearer abc", "Bearer caf\xe9"])
def test_what_a_shell_or_an_editor_left_around_a_header_is_no_fault_of_it(value):
    text = "telemetry: {prometheus: {headers_env: {Authorization: PROM_AUTH}}}"

    assert config.parse(text, {"PROM_AUTH": value}).telemetry.prometheus.headers_env


def test_a_file_that_holds_no_good_key_is_named_and_its_content_is_not(tmp_path):
    contents = {"short": SHORT.encode(), "empty": b"\n\n", "bytes": b"\xff\xfe" + KEY.encode(), "huge": b"x" * 100_000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (problem,) = problems_of(f"server: {{keys: [{{name: a, key_file: {tmp_path}/{name}}}]}}")
        assert f"{tmp_path}/{name}: " in problem
        assert SHORT not in problem and KEY not in problem


def test_a_pipe_is_no_key_file_and_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    (problem,) = problems_of(f"server: {{keys: [{{name: a, key_file: {tmp_path}/pipe}}]}}")

    assert "a pipe, not a file" in problem


def test_what_is_read_shows_itself_as_stars(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text("server: {key_env: A_KEY}")

    assert ["***", "***", "***"] == [repr(Secret(KEY)), str(Secret(KEY)), f"{Secret(KEY):>40}"]
    shown = repr(config.load(path, ENVIRON))
    assert KEY not in shown and repr(digest(KEY)) not in shown and digest(KEY).hex() not in shown


def test_a_configuration_that_may_not_be_read_says_so(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text("server: {}")
    path.chmod(0)
    root = os.geteuid() == 0  # who may read everything
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigurationInvalid, match=r"cannot be read \(Permission denied\)"):
            config.load(path, {})
    finally:
        if root:
            os.seteuid(0)
