"""What a real server was captured saying (tests/fixtures/ollama) on the paths that the gateway relays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher.vocabulary.relay import ENDPOINTS, Endpoint

FOLDER = Path(__file__).parent.parent / "fixtures" / "ollama"


@dataclass(frozen=True, kw_only=True)
class Captured:
    name: str
    endpoint: Endpoint
    sent: Any  # the request's body: a text where it was malformed, None where there was none
    status: int | None
    end: str
    body: bytes
    streamed: bool
    chunks: tuple[int, ...]  # bytes of each piece, as it came

    def __str__(self) -> str:
        return self.name

    @property
    def sent_bytes(self) -> bytes:
        return self.sent.encode() if isinstance(self.sent, str) else json.dumps(self.sent).encode()

    @property
    def pieces(self) -> list[bytes]:
        pieces, at = [], 0
        for size_bytes in self.chunks or (len(self.body),):
            pieces.append(self.body[at : at + size_bytes])
            at += size_bytes
        assert at == len(self.body), self.name
        return pieces


def captured(name: str) -> Captured:
    request = json.loads((FOLDER / f"{name}.request.json").read_text())
    meta = json.loads((FOLDER / f"{name}.meta.json").read_text())
    (body,) = FOLDER.glob(f"{name}.response.*")
    return Captured(
        name=name,
        endpoint=ENDPOINTS[request["path"]],
        sent=request["body"],
        status=meta["status"],
        end=meta["end"],
        body=body.read_bytes(),
        streamed=body.suffix in (".ndjson", ".sse"),
        chunks=tuple(size for _, size in meta.get("chunks") or ()),
    )


def every() -> list[Captured]:
    """Of the relayed paths, as they were meant to be asked (POST)."""
    names = []
    for path in sorted(FOLDER.glob("*.request.json")):
        request = json.loads(path.read_text())
        if request["method"] == "POST" and request["path"] in ENDPOINTS:
            names.append(path.name.removesuffix(".request.json"))
    return [captured(name) for name in names]
