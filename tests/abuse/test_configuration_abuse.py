"""Configurations that would open the door, or eat the machine that reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import ROOT
from tests.realparts import pick_port

EX_CONFIG = 78
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


def dispatcher(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_it_does_not_listen_to_the_world_without_a_key(tmp_path, host):
    config = tmp_path / "dispatcher.yaml"
    config.write_text(f'server: {{host: "{host}", port: {pick_port()}}}\nlifecycle: {{provider: none}}\n')
    ended = dispatcher(tmp_path, "run", "--config", str(config))

    assert EX_CONFIG == ended.returncode
    assert "no key is configured" in ended.stderr


def test_it_does_not_listen_to_the_world_by_its_environment_either(tmp_path):
    ended = dispatcher(tmp_path, "run", DISPATCHER_SERVER_HOST="0.0.0.0", DISPATCHER_SERVER_PORT=str(pick_port()))

    assert EX_CONFIG == ended.returncode


def test_an_empty_key_is_no_key(tmp_path):
    config = tmp_path / "dispatcher.yaml"
    config.write_text(f"server: {{host: 0.0.0.0, port: {pick_port()}, key_env: MY_KEY}}\n")
    ended = dispatcher(tmp_path, "run", "--config", str(config), MY_KEY="")

    assert EX_CONFIG == ended.returncode
    assert "MY_KEY" in ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ALIASES + "server: *i\n", id="a billion laughs"),
        pytest.param("a: &a [*a]\n", id="a list in itself"),
        pytest.param("server: " + "[" * 100_000, id="a hundred thousand brackets"),
        pytest.param("server: !!python/object/apply:os.system ['touch owned']\n", id="a call"),
        pytest.param("server: !!python/name:os.system\n", id="a name"),
        pytest.param("!!python/object/new:subprocess.Popen [['touch', 'owned']]\n", id="a process"),
        pytest.param("server: {port: 1, port: 2}\n", id="a key twice"),
        pytest.param("server: {<<: {port: 1}}\n", id="a merge"),
        pytest.param("telemetry: {interval: .nan}\n", id="no number"),
        pytest.param("server: {port: 0x7fffffffffffffffffffff}\n", id="a number too large"),
        pytest.param("--- {}\n--- {}\n", id="two documents"),
        pytest.param("\x00\x01", id="not text"),
    ],
)
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, text):
    config = tmp_path / "dispatcher.yaml"
    config.write_text(text)
    ended = dispatcher(tmp_path, "check-config", str(config))

    assert (EX_CONFIG, False) == (ended.returncode, "Traceback" in ended.stderr + ended.stdout)
    assert not (tmp_path / "owned").exists()


def test_a_key_written_where_its_variables_name_belongs_is_not_repeated(tmp_path):
    config = tmp_path / "dispatcher.yaml"
    config.write_text("server: {key_env: canary-secret-key-1234}\n")
    ended = dispatcher(tmp_path, "check-config", str(config))

    assert EX_CONFIG == ended.returncode
    assert "canary" not in ended.stdout + ended.stderr
