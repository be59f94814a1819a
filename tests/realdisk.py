"""Disks of a test's own, on loopback devices and in memory: small ones that fill, and one that fails and comes back.
Needs root and the right to mount; where that is missing it is said (attendance.py), and the test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attendance import present, unavailable

SIZE = "2m"
NAME = "own disk"


@dataclass(slots=True, kw_only=True)
class SmallDisk:
    path: Path

    @property
    def ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self) -> None:
        with suppress(OSError), self.ballast.open("ab") as file:
            while True:
                file.write(b"\0" * 4096)
                file.flush()

    def free(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """2 MiB of memory."""
    mount = tmp_path / "small-disk"
    mount.mkdir()
    _mounted(request, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount))
    present(request.config, NAME, "tmpfs")
    yield SmallDisk(path=mount)
    subprocess.run(["umount", "-l", str(mount)], check=True)


@dataclass(slots=True, kw_only=True)
class FailingDisk:
    """ext4 in a file. `fail` is what the kernel does when a disk returns errors: read-only from one moment to the next,
    with files open for writing; every write after it is refused."""

    path: Path
    image: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], check=True, capture_output=True)

    def fail(self) -> None:
        subprocess.run(["mount", "-o", "remount,abort", str(self.path)], check=False, capture_output=True)
        with suppress(OSError):  # the abort takes effect with the next write
            (self.path / "last").write_text("straw")
        assert not _writable(self.path)

    def repair(self) -> None:
        """As an operator would: away with it, checked, and mounted again at its place. Whoever has files open on the
        old one keeps them there."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        copy = self.image.with_suffix(".repaired")  # the old mount still writes to the image while files are open
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)
        subprocess.run(["fsck.ext4", "-fy", str(copy)], check=False, capture_output=True)
        self.image = copy
        self.mount()

    def gone(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)


@pytest.fixture
def failing_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FailingDisk]:
    yield from _ext4(request, tmp_path / "failing-disk", tmp_path / "failing-disk.img")


@pytest.fixture
def disk_with_errors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FailingDisk, SmallDisk]]:
    """ext4 on an image that itself lies on a small disk: when that is full, what the kernel writes to the device comes
    back as an I/O error, at the latest when it is synced."""
    backing = tmp_path / "backing"
    backing.mkdir()
    _mounted(request, "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(backing))
    try:
        for disk in _ext4(request, tmp_path / "disk-with-errors", backing / "image"):
            yield disk, SmallDisk(path=backing)
    finally:
        subprocess.run(["umount", "-l", str(backing)], check=True)


def _ext4(request: pytest.FixtureRequest, mount: Path, image_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(path=mount, image=image_path)
    disk.path.mkdir()
    if shutil.which("mkfs.ext4") is None:
        unavailable(request.config, NAME, "no `mkfs.ext4` on the PATH (Debian package: e2fsprogs)")
    with disk.image.open("wb") as image:
        image.truncate(32 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", str(disk.image)], check=True)
    _mounted(request, "-o", "loop", str(disk.image), str(disk.path))
    present(request.config, NAME, "ext4 on a loop device")
    yield disk
    disk.gone()


def _mounted(request: pytest.FixtureRequest, *arguments: str) -> None:
    if os.geteuid() != 0:
        unavailable(request.config, NAME, "only root may mount one")
    made = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        unavailable(request.config, NAME, f"it cannot be mounted here: {made.stderr.strip()}")


def _writable(path: Path) -> bool:
    try:
        (path / "probe").write_text("x")
    except OSError:
        return False
    return True
