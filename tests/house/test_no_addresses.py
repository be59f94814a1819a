"""What must not be in a tracked file: registry addresses in locks, paths of one machine, secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, files, shown

LOCKS = ("requirements.lock", "requirements-dev.lock")
LOCK_NAMES = re.compile(r"(\.lock|-lock\.json|-lock\.yaml|go\.sum|npm-shrinkwrap\.json)$")
ADDRESS = re.compile(
    r"https?://|--(extra-)?index-url|--find-links|--trusted-host|\b(pypi|pythonhosted)\.org\b|file:", re.I
)
# The patterns are written so that they do not match themselves: this file is read too.
MACHINE_PATH = re.compile(r"(?<![\w./$}-])/(work|tmp/lab|Users/\w+|opt/wheels)/")
SECRETS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,})\b"),
    "OpenAI-like key": re.compile(r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{24,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "credentials in a URL": re.compile(r"https?://[^\s/:@'\"{}<>$]+:[^\s/@'\"{}<>$]{8,}@"),
    "assigned secret": re.compile(
        r"""(?i)\b(api_?key|secret|token|passw(?:or)?d)\b["']?\s*[:=]\s*["'][A-Za-z0-9+/_-]{24,}={0,2}["']"""
    ),
}


def texts() -> list[tuple[Path, str]]:
    """Text files only: one with a NUL byte is a picture or an archive."""
    contents = [(path, path.read_bytes()) for path in files()]
    return [(path, content.decode("utf-8", errors="replace")) for path, content in contents if b"\0" not in content]


def hits(pattern: re.Pattern[str], path: Path, text: str) -> list[str]:
    return [f"{shown(path)}:{n}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def test_lock_files_carry_no_address():
    found = [hit for path, text in texts() if LOCK_NAMES.search(path.name) for hit in hits(ADDRESS, path, text)]

    assert [] == found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_an_exact_version_and_a_hash(lock):
    text = re.sub(r"\s*#.*", "", (ROOT / lock).read_text(encoding="utf-8")).replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip()]

    assert entries
    assert [] == [line for line in entries if not re.match(r"[\w.-]+==\S+( ;.*?)?\s+--hash=sha256:[0-9a-f]{64}", line)]


def test_what_is_tested_is_what_runs():
    runtime, dev = (set(re.findall(r"^[\w.-]+==\S+", (ROOT / lock).read_text("utf-8"), re.M)) for lock in LOCKS)

    assert set() == runtime - dev


def test_no_file_knows_a_path_of_one_machine():
    assert [] == [hit for path, text in texts() for hit in hits(MACHINE_PATH, path, text)]


@pytest.mark.parametrize("kind", SECRETS)
def test_no_file_holds_what_looks_like_a_secret(kind):
    assert [] == [hit for path, text in texts() for hit in hits(SECRETS[kind], path, text)]
