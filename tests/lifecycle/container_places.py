"""Model containers on a real Docker Engine: busybox, the host's root read-only inside, a rehearsal server in it.

Everything made here carries one random prefix and is removed again; nothing else on the engine is touched.
"""

from __future__ import annotations

import contextlib
import io
import random
import socket
import sys
import tarfile
import uuid
from pathlib import Path
from typing import Any

import docker

IMAGE = "dispatcher-test-place"
ROOT = Path(__file__).parents[2]
_BUSYBOX = Path("/bin/busybox")
_PORTS = range(20_000, 32_000)  # below the ephemeral ports: a readiness loop on one of those can connect to itself
_REHEARSE = "from dispatcher.rehearsal.command import rehearse; rehearse()"


def why_not() -> str | None:
    """Why no container can run here; None when one can."""
    if not _BUSYBOX.exists():
        return "busybox-static is not installed"
    try:
        docker.from_env(timeout=5).ping()
    except Exception as cause:
        return f"no Docker Engine answers ({cause})"
    return None


def free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


class ContainerPlaces:
    """Declares containers as compose would: stopped, labelled, published on loopback."""

    def __init__(self) -> None:
        self.client = docker.from_env(timeout=60)
        self.prefix = f"dispatcher-test-{uuid.uuid4().hex[:8]}"
        self._names: list[str] = []
        _build(self.client)

    def declare(
        self,
        model: str = "phi3:mini",
        *options: str,
        labels: dict[str, str] | None = None,
        memory_bytes: int | None = None,
        publish: bool = True,
        command: list[str] | None = None,
    ) -> str:
        """The name of a new, stopped container. labels None: ours; options: of `dispatcher rehearse`."""
        name = f"{self.prefix}-{len(self._names)}"
        self._names.append(name)
        ours = {"dispatcher.managed": "true", "dispatcher.model": model}
        serve = ["--host", "0.0.0.0", "--port", "11434", "--model", model, "--load-seconds", "0.2", *options]
        self.client.containers.create(
            IMAGE,
            command or ["/bin/busybox", "chroot", "/host", sys.executable, "-c", _REHEARSE, *serve],
            name=name,
            labels=ours if labels is None else labels,
            environment={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            volumes=["/:/host:ro"],
            ports={"11434/tcp": ("127.0.0.1", free_port())} if publish else None,
            mem_limit=memory_bytes,
            network_mode="bridge",
        )
        return name

    def container(self, name: str) -> Any:
        return self.client.containers.get(name)

    def events(self, name: str, since: float, until: float) -> list[str]:
        """What happened to it, in Docker's words."""
        seen = self.client.events(since=int(since), until=int(until) + 1, filters={"container": name}, decode=True)
        return [event["Action"] for event in seen]

    def remove(self) -> None:
        for name in self._names:
            with contextlib.suppress(docker.errors.NotFound):
                self.client.api.remove_container(name, force=True)
        self.client.close()


def _build(client: docker.DockerClient) -> None:
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(IMAGE)
        return
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        dockerfile = b"FROM scratch\nCOPY busybox /bin/busybox\nCOPY host /host\n"
        head = tarfile.TarInfo("Dockerfile")
        head.size = len(dockerfile)
        tar.addfile(head, io.BytesIO(dockerfile))
        folder = tarfile.TarInfo("host")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        tar.add(_BUSYBOX, "busybox")
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True)
