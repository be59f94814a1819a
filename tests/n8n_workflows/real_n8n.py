"""A real n8n, as somebody has it who installed it with npm: templates are imported and executed by its own commands.

DISPATCHER_TEST_N8N names a folder that has one (its node_modules/.bin/n8n); else it is installed once, with the
package.json of this folder, into the user's cache. Its own database is in the test's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.attendance import present, tell, unavailable
from tests.n8n_workflows.templates import Workflow
from tests.realparts import Process, eventually, pick_port

HERE = Path(__file__).parent
FOLDER_VARIABLE = "DISPATCHER_TEST_N8N"
INSTALL_SECONDS = 1800  # 3 to 8 minutes on two cores
COMMAND_SECONDS = 240  # 2 to 6 s, or what the workflow waits for
QUIET = {
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
}
METRICS = {  # every switch that n8n 2.8 has; queue metrics appear in its queue mode only
    "N8N_METRICS": "true",
    **{
        f"N8N_METRICS_INCLUDE_{name}": "true"
        for name in (
            "DEFAULT_METRICS",
            "CACHE_METRICS",
            "MESSAGE_EVENT_BUS_METRICS",
            "WORKFLOW_ID_LABEL",
            "WORKFLOW_NAME_LABEL",
            "NODE_TYPE_LABEL",
            "CREDENTIAL_TYPE_LABEL",
            "API_ENDPOINTS",
            "API_PATH_LABEL",
            "API_METHOD_LABEL",
            "API_STATUS_CODE_LABEL",
            "QUEUE_METRICS",
            "WORKFLOW_STATISTICS",
        )
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What n8n tells of one execution. Items are their JSON."""

    told: dict[str, Any]

    @property
    def succeeded(self) -> bool:
        return bool(self.told["status"] == "success")

    @property
    def said(self) -> str:
        """Why it failed, all of its words; "" when it did not."""
        error = self.told["data"]["resultData"].get("error", {})
        return " ".join([error.get("message", ""), *map(str, error.get("messages", []))]).strip()

    @property
    def nodes(self) -> set[str]:
        """Those that ran."""
        return set(self.told["data"]["resultData"]["runData"])

    def items(self, node: str, output: int = 0) -> list[Any]:
        """What came out of the node there, in all of its runs, one after the other."""
        found = []
        for run in self.told["data"]["resultData"]["runData"][node]:
            outputs = run["data"]["main"]
            found += [item["json"] for item in (outputs[output] if output < len(outputs) else None) or []]
        return found

    def one(self, node: str, output: int = 0) -> Any:
        (item,) = self.items(node, output)
        return item


@dataclass(slots=True, kw_only=True)
class RealN8n:
    program: Path
    folder: Path
    port: int = field(default_factory=pick_port)
    broker_port: int = field(default_factory=pick_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "N8N_USER_FOLDER": str(self.folder),
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_PORT": str(self.port),
            "N8N_RUNNERS_BROKER_PORT": str(self.broker_port),
            **QUIET,
            **METRICS,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def take_in(self, workflow: Mapping[str, Any]) -> None:
        """Imports it, in the place of one with the same id."""
        self._take_in("import:workflow", workflow)

    def take_in_credential(self, credential: Mapping[str, Any]) -> None:
        self._take_in("import:credentials", [credential])

    def _take_in(self, command: str, content: object) -> None:
        path = self.folder / "imported.json"
        path.write_text(json.dumps(content))
        done = self.run(command, f"--input={path}")
        assert "Successfully imported" in done.stdout, done.stdout + done.stderr

    def execute(self, workflow: Workflow) -> Execution:
        """Imports it and runs it to its end, from the first trigger it has, as the button in the editor does."""
        self.take_in(workflow)
        done = self.run("execute", f"--id={workflow['id']}", "--rawOutput")
        begin = done.stdout.find("{\n")
        assert begin >= 0, done.stdout + done.stderr
        told, _ = json.JSONDecoder().raw_decode(done.stdout[begin:])
        return Execution(told=told)

    def publish(self, workflow: Workflow) -> None:
        """From the next start on, its triggers are live."""
        self.take_in(workflow)
        done = self.run("publish:workflow", f"--id={workflow['id']}")
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def serving(self, webhook: str) -> Iterator[None]:
        """Up, with its webhooks: health is green before they are there."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        process = Process.start(["env", "-i", *variables, str(self.program), "start"], self.folder / "n8n.log")
        try:
            process.wait_for_http(f"{self.url}/healthz")
            # GET to one that takes POST: 404 with other words once it is registered, and it starts nothing.
            eventually(
                lambda: ("This webhook is not registered for GET" in self._get(f"/webhook/{webhook}")) or None,
                deadline_seconds=60,
                what=lambda: f"the webhook {webhook}: {process.tail()}",
            )
            yield
        finally:
            process.stop()

    def _get(self, path: str) -> str:
        with suppress(httpx.HTTPError):
            return httpx.get(self.url + path, timeout=10, trust_env=False).text
        return ""

    def call(self, webhook: str) -> httpx.Response:
        return httpx.post(f"{self.url}/webhook/{webhook}", json={}, timeout=120, trust_env=False)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text


def real_n8n(request: pytest.FixtureRequest, folder: Path) -> RealN8n:
    """Found or installed; the test is skipped, and says so, where it cannot be."""
    program = _folder() / "node_modules" / ".bin" / "n8n"
    if not program.exists():
        if os.environ.get(FOLDER_VARIABLE):
            pytest.fail(f"{FOLDER_VARIABLE} names a folder without node_modules/.bin/n8n: {_folder()}")
        if (npm := shutil.which("npm")) is None:
            unavailable(request.config, "n8n", "no `npm` on the PATH (n8n 2.8 needs Node.js 20.19 or newer)")
        _install(npm)
    n8n = RealN8n(program=program, folder=folder)
    version = n8n.run("--version").stdout.strip()
    assert version, f"{program} does not tell its version"
    present(request.config, "n8n", version)
    tell(request.config, [f"a real n8n {version} took part"])
    return n8n


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(FOLDER_VARIABLE) or cache / "ai-model-dispatcher" / "n8n")


def _install(npm: str) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", folder)
    command = [npm, "install", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
