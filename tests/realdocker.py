"""Fixtures for a real Docker Engine and model containers on it.

No image can be pulled on a test machine, so the image is busybox FROM scratch, and a container runs the rehearsal
server with the host's own Python: the host's root is mounted read-only at /host, and busybox chroots into it. Memory
limits, start, stop, out-of-memory kills and published ports are real.

    def test_x(model_containers):
        phi = model_containers("phi3:mini", memory_bytes=256 * MIB, resident_bytes=100 * MIB)   # made, not started
        phi.start().wait_until_it_answers()
        httpx.get(f"{phi.endpoint}/api/ps")

Everything carries the label dispatcher.test=<prefix of this run> and is removed at the end; leftovers of runs that
died on this host are removed at the next start. Others may use the same engine: nothing without the label is touched.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import httpx
import pytest

from tests.attendance import present, unavailable
from tests.realparts import Process, eventually, pick_port
from tests.side_by_side import one_at_a_time, serves_all

MIB = 2**20
IMAGE = "dispatcher-test/model:1"
SOCKET = Path("/var/run/docker.sock")
ROOT = Path(__file__).resolve().parents[1]
_LABEL = "dispatcher.test"
_DEADLINE_SECONDS = 60


@dataclass(slots=True, kw_only=True)
class DockerEngine:
    client: docker.DockerClient
    prefix: str  # of every name made in this run; also the value of the label dispatcher.test
    ours: bool  # we started the daemon, and stop it

    @property
    def mine(self) -> dict[str, str]:
        """For lifecycle.docker_labels: the engine is shared, and only this run's containers are this run's places."""
        return {_LABEL: self.prefix}


def _connect() -> docker.DockerClient | None:
    """None when the socket does not answer."""
    try:
        client = docker.DockerClient(base_url=f"unix://{SOCKET}", timeout=_DEADLINE_SECONDS)
        client.ping()
    except (docker.errors.DockerException, OSError):
        return None
    return client


def _start_dockerd(config: pytest.Config, folder: Path) -> Process:
    if shutil.which("dockerd") is None:
        unavailable(config, "Docker", f"{SOCKET} does not answer and there is no dockerd (Debian package: docker.io)")
    if os.geteuid() != 0:
        unavailable(config, "Docker", f"{SOCKET} does not answer, and only root can start a dockerd")
    # With its usual pid file and data: they keep it from starting beside another dockerd that listens elsewhere.
    return Process.start(["dockerd", f"--host=unix://{SOCKET}"], folder / "log")


@pytest.fixture(scope="session")
def docker_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """The engine on the usual socket, or one started for this run and stopped after it."""
    with one_at_a_time(request.config, "docker"):
        client, dockerd, shared = _connect(), None, False
        if client is None:
            dockerd = _start_dockerd(request.config, tmp_path_factory.mktemp("dockerd"))
            client = _first_answer(request.config, dockerd)
            shared = serves_all(request.config, "dockerd", dockerd.pid)
        _remove_leftovers(client)
    present(request.config, "Docker", client.version()["Version"])
    prefix = f"dispatcher-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    try:
        yield DockerEngine(client=client, prefix=prefix, ours=dockerd is not None)
    finally:
        for container in client.api.containers(all=True, filters={"label": f"{_LABEL}={prefix}"}):
            _remove(client, container["Id"])
        client.close()
        if dockerd is not None and not shared:
            dockerd.stop(grace_seconds=30)


def _first_answer(config: pytest.Config, dockerd: Process) -> docker.DockerClient:
    try:
        return eventually(lambda: _answer_of(dockerd), deadline_seconds=_DEADLINE_SECONDS, what=dockerd.tail)
    except (RuntimeError, TimeoutError) as cause:
        dockerd.stop()
        unavailable(config, "Docker", f"a dockerd was started and does not run here: {cause}")


def _answer_of(dockerd: Process) -> docker.DockerClient | None:
    if dockerd.popen.poll() is not None:
        raise RuntimeError(dockerd.tail())
    return _connect()


def _remove(client: docker.DockerClient, container: str) -> None:
    with suppress(docker.errors.NotFound):
        client.api.remove_container(container, force=True, v=True)


def _remove_leftovers(client: docker.DockerClient) -> None:
    """Containers of runs on this host whose pytest is gone. Another host's pids say nothing about its runs."""
    for container in client.api.containers(all=True, filters={"label": _LABEL}):
        labels = container["Labels"]
        pid = labels[_LABEL].removeprefix("dispatcher-test-").partition("-")[0]
        if labels.get(f"{_LABEL}.host") == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            _remove(client, container["Id"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def static_busybox() -> Path | None:
    """A busybox that needs no dynamic loader; None when this machine has none."""
    found = shutil.which("busybox")
    if found is None:
        return None
    with Path(found).open("rb") as file:
        head = file.read(4096)  # a dynamic program names its loader here (PT_INTERP)
    return None if b"/ld-" in head else Path(found)


@pytest.fixture(scope="session")
def model_image(request: pytest.FixtureRequest, docker_engine: DockerEngine) -> str:
    """The tag of an image that holds busybox, /bin/sh and an empty /host; built once per engine."""
    if not sys.platform.startswith("linux"):
        unavailable(request.config, "Docker", "model containers run this host's Python, which must be a Linux one")
    busybox = static_busybox()
    if busybox is None:
        unavailable(request.config, "Docker", "no static busybox (Debian package: busybox-static)")
    with one_at_a_time(request.config, "docker"):
        try:
            docker_engine.client.images.get(IMAGE)
        except docker.errors.ImageNotFound:
            context = _build_context(busybox)
            docker_engine.client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True)
    return IMAGE


def _build_context(busybox: Path) -> io.BytesIO:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        dockerfile = b"FROM scratch\nCOPY root/ /\n"
        head = tarfile.TarInfo("Dockerfile")
        head.size = len(dockerfile)
        tar.addfile(head, io.BytesIO(dockerfile))
        for folder in ("root", "root/bin", "root/host", "root/tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox.resolve(), "root/bin/busybox")
        shell = tarfile.TarInfo("root/bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(shell)
    context.seek(0)
    return context


@dataclass(slots=True, kw_only=True)
class ModelContainer:
    """A declared container. It never starts by itself."""

    name: str
    model: str
    port: int  # on 127.0.0.1
    engine: DockerEngine

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ModelContainer:
        self.engine.client.api.start(self.name)
        return self

    def stop(self, grace_seconds: int = 5) -> ModelContainer:
        self.engine.client.api.stop(self.name, timeout=grace_seconds)
        return self

    def kill(self) -> ModelContainer:
        self.engine.client.api.kill(self.name)
        return self

    def remove(self) -> None:
        _remove(self.engine.client, self.name)

    def inspect(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.engine.client.api.inspect_container(self.name)
        return answer

    def state(self) -> dict[str, Any]:
        """Docker's own: Running, Status, ExitCode, OOMKilled, …"""
        answer: dict[str, Any] = self.inspect()["State"]
        return answer

    def logs(self) -> str:
        output: bytes = self.engine.client.api.logs(self.name)
        return output.decode(errors="replace")

    def wait_until_it_answers(self, path: str = "/api/version") -> ModelContainer:
        """Returns once GET path answers 200. Raises RuntimeError with the logs when the container ends before."""

        def answers() -> bool | None:
            with suppress(httpx.HTTPError):
                return httpx.get(self.endpoint + path, timeout=2, trust_env=False).status_code == 200 or None
            if not self.state()["Running"]:
                raise RuntimeError(f"{self.name} ended: {self.state()} {self.logs()[-2000:]}")
            return None

        eventually(answers, deadline_seconds=_DEADLINE_SECONDS, what=lambda: f"{self.endpoint}{path}: {self.logs()}")
        return self


@dataclass(slots=True, kw_only=True)
class ModelContainers:
    """Declares containers as compose would: stopped, labelled, limited, published on loopback at a fixed port."""

    engine: DockerEngine
    image: str
    made: list[ModelContainer] = field(default_factory=list)

    def __call__(
        self,
        model: str = "phi3:mini",
        *,
        memory_bytes: int | None = 512 * MIB,  # None: no limit. The server itself needs about 60 MiB
        load_seconds: float = 0.2,
        tokens_per_second: float = 200.0,
        resident_bytes: int | None = None,  # really held while the model is loaded; None: the prior, held on paper only
        options: Sequence[str] = (),  # further options of `dispatcher rehearse`
        command: Sequence[str] | None = None,  # instead of the rehearsal server, run in the chroot
        labels: Mapping[str, str | None] | None = None,  # over ours; None leaves one out
        name: str | None = None,  # the end of the container's name
    ) -> ModelContainer:
        name = f"{self.engine.prefix}-{name or len(self.made)}"
        port = pick_port()
        rehearse = [sys.executable, "-m", "dispatcher", "rehearse", "--host", "0.0.0.0", "--port", "11434"]
        rehearse += ["--model", model, "--load-seconds", f"{load_seconds:g}"]
        rehearse += ["--tokens-per-second", f"{tokens_per_second:g}"]
        if resident_bytes is not None:
            rehearse += ["--resident-bytes", str(resident_bytes), "--allocate"]
        ours: dict[str, str | None] = {"dispatcher.managed": "true", "dispatcher.model": model, **(labels or {})}
        ours |= {**self.engine.mine, f"{_LABEL}.host": socket.gethostname()}
        self.engine.client.containers.create(
            self.image,
            ["/bin/busybox", "chroot", "/host", *(command or [*rehearse, *options])],
            name=name,
            labels={key: value for key, value in ours.items() if value is not None},
            # The mount is read-only: no .pyc can be written. Inside the chroot the checkout is where it is outside.
            environment={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
            volumes=["/:/host:ro"],
            ports={"11434/tcp": ("127.0.0.1", port)},
            mem_limit=memory_bytes,
            restart_policy={"Name": "no"},
        )
        self.made.append(ModelContainer(name=name, model=model, port=port, engine=self.engine))
        return self.made[-1]


def containers(engine: DockerEngine, image: str) -> Iterator[ModelContainers]:
    """A factory; see ModelContainers.__call__. What it made is removed at the end, of a test or of a fixture."""
    factory = ModelContainers(engine=engine, image=image)
    try:
        yield factory
    finally:
        for container in factory.made:
            container.remove()


@pytest.fixture
def model_containers(docker_engine: DockerEngine, model_image: str) -> Iterator[ModelContainers]:
    """For one test."""
    yield from containers(docker_engine, model_image)
