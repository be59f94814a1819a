"""One client's connection, bounded before anything of it is parsed or kept: how many, how large, how slow, how framed.

uvicorn's httptools protocol has no limit on headers, none on time, and refuses in plain text. This subclass feeds the
parser in pieces no larger than the header limit, counts what arrives, and answers every refusal in the format of the
surface that was asked, with X-Request-Id. It alone looks at the size and the time of a body; nobody behind it does
again. After a refusal the connection is closed, but lingers a moment: what the client still sends is thrown away,
because closing on unread bytes is a reset, which may reach the client before the words do.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dispatcher.api.crowd import Crowd
from dispatcher.api.exchange import ABORT, CLOSE, PRESENCE, Presence, request_id_of
from dispatcher.api.framing import misframed, stated_length
from dispatcher.vocabulary.settings import LimitSettings
from dispatcher.vocabulary.words import printable
from dispatcher.wire.envelope import refusal

LINGER_SECONDS = 2.0
LINGER_BYTES = 8 * 1024**2
FRAMING_PER_BYTE = 8  # a chunk of one byte is framed by five; more than this is framing for its own sake
BETWEEN, HEAD, BODY = 0, 1, 2  # the part of a request that is being read
_RETRY = b"retry-after: 1\r\n"


class Connection(HttpToolsProtocol):
    """limits: asked when the connection is made."""

    def __init__(self, *given: Any, limits: Callable[[], LimitSettings], crowd: Crowd, **named: Any) -> None:
        super().__init__(*given, **named)
        self._limits = limits()
        self._crowd = crowd
        self._presence = Presence()
        self._timer: TimerHandle | None = None
        self._unread: TimerHandle | None = None  # while the client does not take its answer
        self._part = BETWEEN
        self._began = False  # a request, inside of the piece that is being fed
        self._head_bytes = 0
        self._body_bytes = 0
        self._wire_bytes = 0  # of the body with its framing
        self._turned = False
        self._discarded_bytes = 0

    # --- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive = self._limits.keep_alive_seconds  # type: ignore[assignment]
        because = self._crowd.refusal(self, self.client[0] if self.client else "", len(self.connections), self._limits)
        if because is not None:
            self._turned = True
            self._tell("too_many", because, _RETRY)
            transport.close()
            return
        self._timer = self.loop.call_later(self._limits.header_timeout_seconds, self._head_is_late)

    def pause_writing(self) -> None:
        """The client does not take what it asked for. It has as long for that as for sending: without an end, those who
        never read would hold their connections and everybody's drain."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.body_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._is_read()
        self._crowd.left(self)
        super().connection_lost(exc)
        self._presence.end()

    def leave_idle(self) -> None:
        """For somebody new. Only ever asked of one that is between requests."""
        self.timeout_keep_alive_handler()

    def timeout_keep_alive_handler(self) -> None:
        """A plain close would wait for a client that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part == BETWEEN and self._unanswered() is None and not self.transport.is_closing():
            self._crowd.idles(self)

    # --- what arrives --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._turned:
            self._discard(len(data))
            return
        self._crowd.works(self)
        self._unset_keepalive_if_required()
        self._take(data)

    def _take(self, data: bytes) -> None:
        limit = self._limits.header_bytes
        start = 0
        while start < len(data) and not self._turned:
            room = limit - self._head_bytes if self._part == HEAD else limit
            piece = data[start : start + room] if start or len(data) > room else data
            start += len(piece)
            self._feed(piece)
        if self._timer is None and not self._turned:
            self._watch()

    def _feed(self, piece: bytes) -> None:
        before, self._began = self._part, False
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._turned = True  # answered as if it had not asked; what follows is another protocol's
            if (cycle := self._unanswered()) is not None:
                cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            if not self._turned:
                self._refuse("invalid_request", f"this is not HTTP/1.1: {_words_of(error)}")
            return
        if self._turned:
            return
        if self._part == HEAD and (before != BODY or not self._began):  # else the piece is mostly the last body
            self._head_bytes += len(piece)
            if self._head_bytes >= self._limits.header_bytes:
                detail = f"the request line and headers may have {self._limits.header_bytes} bytes"
                self._refuse("head_too_large", detail)
        elif self._part == BODY and before == BODY and not self._began:
            self._wire_bytes += len(piece)
            framing_bytes = self._wire_bytes - self._body_bytes
            if framing_bytes > self._limits.header_bytes + FRAMING_PER_BYTE * self._body_bytes:
                self._refuse("invalid_request", "there is more framing than body; send it in larger chunks")

    def _watch(self) -> None:
        """Something arrived and more has to: for so long it may take."""
        if self._part == BODY:
            self._timer = self.loop.call_later(self._limits.body_timeout_seconds, self._body_is_late)
        elif self._part == HEAD or self._unanswered() is None:
            self._timer = self.loop.call_later(self._limits.header_timeout_seconds, self._head_is_late)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._turned:
            return
        self._part, self._began = HEAD, True
        self._head_bytes = self._body_bytes = self._wire_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part == HEAD:  # trailers are dropped: nothing here reads them, and the head was judged already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._turned:
            return
        self._cancel_timer()
        because = misframed(self.url, self.headers, self.parser.get_http_version())
        if because is not None:
            self._refuse("invalid_request", because)
            return
        if stated_length(self.headers) > self._limits.body_bytes:
            self._refuse_body()
            return
        self._part = BODY
        super().on_headers_complete()
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
        self.scope[CLOSE] = self.transport.close  # type: ignore[literal-required]
        self.scope[PRESENCE] = self._presence  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        if self._turned:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._turned:
            return
        self._cancel_timer()
        self._part = BETWEEN
        if not self.pipeline:  # a large body paused it, and who reads nothing never hears that the client left
            self.flow.resume_reading()
        super().on_message_complete()

    # --- refusing ------------------------------------------------------------------------------------------------

    def _head_is_late(self) -> None:
        self._timer = None
        seconds = self._limits.header_timeout_seconds
        self._refuse("too_slow", f"the request line and headers did not arrive within {seconds:g} s")

    def _body_is_late(self) -> None:
        self._timer = None
        self._refuse("too_slow", f"the body did not arrive within {self._limits.body_timeout_seconds:g} s")

    def _refuse_body(self) -> None:
        most = self._limits.body_bytes
        self._refuse("too_large", f"a body may have {most} bytes; say context_tokens and send the prompt's beginning")

    def _refuse(self, word: str, detail: str) -> None:
        """The last thing said here. Never into the middle of another answer."""
        if self._turned or self.transport.is_closing():
            return
        self._turned = True
        self._cancel_timer()
        self._unset_keepalive_if_required()
        cycle = self._unanswered()
        if cycle is not None:
            if self._part != BODY:  # pipelined after one that is still being answered: that one is the last
                cycle.keep_alive = False
                return
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if self._part != BODY or cycle is not None:  # else it is the rest of a body whose request was answered already
            self._tell(word, detail)
        self._linger()

    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request, until its answer is complete."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _tell(self, word: str, detail: str, more: bytes = b"") -> None:
        request_id = request_id_of(dict(self.headers or ()).get(b"x-request-id", b""))
        told = refusal(self._path(), word, detail, request_id.decode())
        self.transport.write(
            b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b"
            b"cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[told.status], told.media_type.encode(), len(told.body), request_id, more, told.body)
        )

    def _path(self) -> str:
        """Of the request that is being read, as far as it is known; "" between two."""
        target: bytes = b"" if self._part == BETWEEN else self.url
        if not target.startswith(b"/"):
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        return unquote(target.partition(b"?")[0].decode("latin-1"))

    def _linger(self) -> None:
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _discard(self, count: int) -> None:
        self._discarded_bytes += count
        if self._discarded_bytes > LINGER_BYTES and not self.transport.is_closing():
            self.transport.abort()


def _words_of(error: BaseException) -> str:
    """The parser's, or those of what went wrong in a callback of it. Never the client's bytes."""
    if isinstance(error, httptools.HttpParserCallbackError):
        return "its target cannot be read"
    words = str(error).strip() or type(error).__name__
    return printable(words[:120], "")
