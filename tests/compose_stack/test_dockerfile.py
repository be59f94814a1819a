"""The Dockerfile without its base image, which cannot be pulled here: what it copies is there and not ignored, and
laid out as it lays it out the program starts."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose_stack.parts import ROOT

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
COPIED = [line.split()[1:3] for line in LINES if line.startswith("COPY ") and "--from" not in line]
LIB = "/opt/dispatcher/lib/"


def environment() -> dict[str, str]:
    """Of ENV in the Dockerfile, without the image's own places."""
    (words,) = [line.removeprefix("ENV ").split() for line in LINES if line.startswith("ENV ")]
    return dict(word.split("=", 1) for word in words)


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last pattern that matches says it. A folder's pattern counts for all in it."""
    answer = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        names = parts if "**/" in pattern else []
        if any(_matches(head, wanted) for head in heads) or any(fnmatch.fnmatchcase(name, wanted) for name in names):
            answer = not pattern.startswith("!")
    return answer


def _matches(path: str, pattern: str) -> bool:
    """* does not cross a slash."""
    left, right = path.split("/"), pattern.split("/")
    return len(left) == len(right) and all(map(fnmatch.fnmatchcase, left, right))


def test_what_it_copies_is_there_and_not_ignored() -> None:
    assert COPIED
    assert [] == [source for source, _ in COPIED if not (ROOT / source).exists() or ignored(source)]


@pytest.mark.parametrize(
    "path",
    [".env", "compose/secrets/admin.key", ".git/config", ".venv/bin/python", "tests/conftest.py", "prometheus/x.key"],
)
def test_what_has_no_business_in_an_image_is_ignored(path: str) -> None:
    assert ignored(path)


def test_the_packages_are_installed_by_their_hashes() -> None:
    (installing,) = [line for line in LINES if "pip install" in line]

    assert "--require-hashes" in installing
    assert installing.endswith("-r /build/requirements.lock")


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """The folder that becomes /opt/dispatcher/lib."""
    for source, target in COPIED:
        if target.startswith(LIB):
            to = tmp_path / target.removeprefix(LIB)
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, to)
    return tmp_path


def test_laid_out_so_the_program_starts_and_every_link_leads_somewhere(laid_out: Path, tmp_path: Path) -> None:
    words = {name: value for name, value in environment().items() if name not in ("PATH", "HOME", "PYTHONPATH")}
    (entry,) = [line.removeprefix("ENTRYPOINT ") for line in LINES if line.startswith("ENTRYPOINT ")]
    assert '["python", "-P", "-m", "dispatcher"]' == entry
    assert LIB.rstrip("/") == environment()["PYTHONPATH"]

    ran = subprocess.run(
        [sys.executable, "-P", "-m", "dispatcher", "check-config", str(ROOT / "dispatcher.example.yaml")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(laid_out), "HOME": str(tmp_path), **words},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 0 == ran.returncode, ran.stdout + ran.stderr
    assert [] == [path for path in laid_out.rglob("*") if path.is_symlink() and not path.exists()]
    assert (laid_out / "dispatcher" / "history" / "schema.sql").is_file()
