"""What a simulated server is asked, what troubles it, and what happens then: the values replay.engine takes and gives.

Times are whatever the caller's clock says, in seconds; durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RunnerKilled = "an error was encountered while running the model: unexpected EOF"  # runner_killed_generate_nonstream
LoadKilled = "llama runner process has terminated: signal: killed"  # runner_killed_while_loading
ServerBusy = "server busy, please try again.  maximum pending requests exceeded"  # busy_503_generate
ContextExceeded = "the input length exceeds the context length"  # generate_context_exceeded_truncate_false


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to the server. Nothing about surfaces or streams: those are told apart by whoever answers."""

    model: str
    work: Literal["generate", "embed", "load"] = "generate"  # load: no prompt, only bring it into memory
    prompt: str = ""  # for the prompt cache only: the longer the common beginning, the less is evaluated (rule 6)
    prompt_tokens: int = 1
    num_predict: int | None = None  # None, 0 and below: no limit (rule 16)
    natural_tokens: int = 200  # where the answer would end by itself, a stop sequence included; at least 1
    num_ctx: int | None = None  # None: the model's default. Another than the loaded one reloads (rule 15)
    keep_alive_seconds: float | None = (
        None  # None: as it is, or the server's default; negative: for ever; 0: unload after
    )
    truncate: bool = True  # False: a prompt longer than the context is a 400 (rule 14)
    shift: bool = True  # False: the answer stops at the edge of the context
    token_events: bool = False  # True: one Token event per token; costs a step each


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How this request differs from the model's stated speeds. Factors multiply durations; made outside."""

    load_factor: float = 1.0
    prefill_factor: float = 1.0
    decode_factor: float = 1.0
    scheduler_seconds: float = 0.002  # a warm load_duration is 1-4 ms, never 0 (rule 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong with the server. All fields at rest: nothing is."""

    model: str | None = None  # only this one; None: every model
    kill_runner_after_tokens: int | None = None  # kill -9 of the model process at that token of any answer
    refuse_loads: Literal["memory", "busy"] | None = None  # 500 "requires more system memory", or 503
    fail_loads: int = 0  # that many loads die half way: 500 "signal: killed"
    slowdown_ratio: float = 1.0  # durations of evaluating and generating times this
    silent: bool = False  # a paused container: everything stands still, nothing is answered (whole server)
    cut_after_tokens: int | None = None  # the connection closes at that token; done by whoever holds the sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadStarted:
    at_seconds: float
    model: str
    num_ctx: int
    resident_bytes: int
    load_seconds: float  # how long it takes unless something happens


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEnded:
    """loaded False: aborted by a client that left, or killed; it holds no memory any more."""

    at_seconds: float
    model: str
    loaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerGone:
    """The model process of a loaded model is gone and its memory free: unloaded, or killed (then still listed)."""

    at_seconds: float
    model: str
    killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    at_seconds: float
    request: int
    index: int  # 1 is the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The answer is complete. A field that the server would leave out (rule 4) is None."""

    at_seconds: float
    request: int
    done_reason: Literal["stop", "length", "load"]
    total_seconds: float
    load_seconds: float  # all time in the scheduler (rule 2)
    wait_seconds: float  # for a slot; in no field of the server's answer (rule 1)
    prompt_eval_seconds: float | None
    eval_seconds: float | None  # None with fewer than two tokens (rule 5)
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The request ended with an error, before its first token or after it."""

    at_seconds: float
    request: int
    status: int
    text: str


Event = LoadStarted | LoadEnded | RunnerGone | Token | Finished | Refused
