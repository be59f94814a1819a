"""A run as a document: JSON for machines and for --compare, Markdown for people; and the way back from the JSON.

No prompt's text, no address and no name of a machine or person is in it: it may be shown around.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dispatcher.bench.compare import Compared
from dispatcher.bench.samples import OUTLIER_FACTOR, OUTLIER_MIN_SAMPLES, Outlier, Sample, Summary, outliers
from dispatcher.vocabulary.words import Bytes, printable, shortened

SCHEMA = "dispatcher-bench"
SCHEMA_VERSION = 1
MAX_FILE_BYTES = 64 * 1024**2
REHEARSAL = "REHEARSAL: simulated models answered. These figures say nothing about real ones."
INTERRUPTED = "INTERRUPTED: these are the answers that had come until then."


class ReportUnreadable(ValueError):
    """No result of ours. Its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """settings: how it was measured. at: when it began, ISO 8601. host: facts, no names."""

    at: str
    version: str
    rehearsal: bool
    interrupted: bool
    settings: Mapping[str, Any]
    host: Mapping[str, Any]
    models: Sequence[Summary]
    samples: Sequence[Sample]

    @property
    def outliers(self) -> list[Outlier]:
        return outliers(self.samples)


def host_facts(total_memory_bytes: int | None) -> dict[str, Any]:
    """Of the machine this runs on; the models may be elsewhere."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": total_memory_bytes,
        "python": platform.python_version(),
    }


def _processor() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except (OSError, UnicodeDecodeError):
        return None
    return found[1].strip() if found else None


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def document(report: Report, compared: Sequence[Compared] = ()) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "at": report.at,
        "version": report.version,
        "rehearsal": report.rehearsal,
        "interrupted": report.interrupted,
        "settings": dict(report.settings),
        "host": dict(report.host),
        "models": [{**asdict(each), "success_ratio": each.success_ratio} for each in report.models],
        "outlier_rule": outlier_rule(),
        "outliers": [
            {
                "model": each.sample.model,
                "prompt": each.sample.prompt,
                "iteration": each.sample.iteration,
                "seconds": each.sample.seconds,
                "median_seconds": each.median_seconds,
            }
            for each in report.outliers
        ],
        "compared": [asdict(each) for each in compared],
        "samples": [asdict(sample) for sample in report.samples],
    }


def outlier_rule() -> str:
    return (
        f"a warm good answer of more than {OUTLIER_FACTOR:g} × the median of its model and prompt, of which at least "
        f"{OUTLIER_MIN_SAMPLES} are known; in the data and in p95, not in medians"
    )


def read_samples(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """An earlier JSON, or the folder it was written to: its head and its samples. Raises ReportUnreadable."""
    path = path / "bench.json" if path.is_dir() else path
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        told = json.loads(content) if len(content) <= MAX_FILE_BYTES else None
    except OSError as error:
        raise ReportUnreadable(f"{path.name} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ReportUnreadable(f"{path.name} is no JSON ({error})") from error
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise ReportUnreadable(f"{path.name} is no result of `dispatcher bench`; give the bench.json of an earlier run")
    if told.get("schema_version") != SCHEMA_VERSION:
        found = shortened(str(told.get("schema_version")))
        raise ReportUnreadable(f"{path.name} has schema version {found}, this program reads {SCHEMA_VERSION}")
    rows = told.get("samples")
    if not isinstance(rows, list):
        raise ReportUnreadable(f"{path.name} has no samples")
    return told, [_sample(path, row) for row in rows]


def _sample(path: Path, row: Any) -> Sample:
    known = {field.name: field.type for field in fields(Sample)}
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("model", "prompt", "task")):
        raise ReportUnreadable(f"{path.name} has a sample without model, prompt or task")
    given = {name: value for name, value in row.items() if name in known}
    for name, value in given.items():
        numeric = "float" in str(known[name]) or "int" in str(known[name])
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        if name != "iteration" and numeric and value is not None and not good:
            raise ReportUnreadable(f"{path.name} has a sample whose {name} is {shortened(str(value))}")
    given.setdefault("iteration", 0)
    return Sample(**given)


def unlike(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """In what two runs differ besides the moment: what a difference between them may come from."""
    found = []
    for section, names in (
        ("settings", ("via", "prompts", "iterations", "warm_up", "timeout_seconds")),
        ("host", ("system", "machine", "processor", "cpus", "memory_bytes")),
    ):
        here, there = now.get(section) or {}, earlier.get(section) or {}
        there = there if isinstance(there, Mapping) else {}
        for name in names:
            if here.get(name) != there.get(name):
                found.append(f"{name}: {shortened(str(here.get(name)))} now, {shortened(str(there.get(name)))} then")
    if bool(now.get("rehearsal")) != bool(earlier.get("rehearsal")):
        found.insert(0, "one of them was a REHEARSAL: simulated models; such a comparison means nothing")
    return found


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────────────────────────


def markdown(report: Report, compared: Sequence[Compared] = (), differences: Sequence[str] = ()) -> str:
    parts = ["# Benchmark"]
    parts += [f"> **{words}**" for words in banners(report)]
    parts.append(_how(report))
    parts.append(_table(_HEAD, [_row(each) for each in report.models]))
    parts.append(
        "Medians: warm good answers without outliers. p95 and p5: with them. Cold: the first answer after a load; "
        "through a dispatcher its load counts from the request, making room and starting included."
        if report.models
        else "Nothing was measured."
    )
    tasks = sorted({task for each in report.models for task in each.task_seconds})
    if tasks:
        rows = [[cell(each.model), *(seconds(each.task_seconds.get(task)) for task in tasks)] for each in report.models]
        parts += ["## Median seconds by task", _table(["model", *tasks], rows)]
    parts += ["## What went wrong", _troubles(report)]
    parts += ["## Outliers", _outliers(report)]
    if compared:
        parts += ["## Compared with an earlier run", _compared(compared, differences)]
    return "\n\n".join(parts) + "\n"


def banners(report: Report) -> list[str]:
    return [words for words, said in ((REHEARSAL, report.rehearsal), (INTERRUPTED, report.interrupted)) if said]


_HEAD = [
    "model", "good", "median", "p95", "first token", "tokens/s", "p5", "prefill/s", "around the engine",
    "cold", "load", "outliers",
]  # fmt: skip


def row_of(each: Summary) -> list[str]:
    """The cells of one model, for any table."""
    good = f"{each.ok}/{each.asked}" if each.asked else "–"
    return [
        printable(each.model),
        good,
        seconds(each.seconds.median),
        seconds(each.seconds.p95),
        seconds(each.first_token_seconds.median),
        rate(each.tokens_per_second.median),
        rate(each.tokens_per_second.p5),
        rate(each.prefill_tokens_per_second.median),
        seconds(each.outside_seconds.median),
        seconds(each.cold_seconds.median),
        seconds(each.load_seconds.median),
        str(each.outliers),
    ]


HEAD = tuple(_HEAD)


def _row(each: Summary) -> list[str]:
    return [cell(text) for text in row_of(each)]


def _how(report: Report) -> str:
    told, host = report.settings, report.host
    memory = f", {Bytes(host['memory_bytes'])}" if host.get("memory_bytes") else ""
    processor = f" ({cell(str(host['processor']))})" if host.get("processor") else ""
    return (
        f"{report.at}, version {report.version}, {told.get('via')}: {told.get('prompt_count')} prompts "
        f"(set {told.get('prompts')}) × {told.get('iterations')}, warm-up {told.get('warm_up')}, at most "
        f"{told.get('timeout_seconds'):g} s each. Measured from {host.get('system')} {host.get('machine')}, "
        f"{host.get('cpus')} CPUs{processor}{memory}."
    )


def troubles(report: Report) -> list[str]:
    """One sentence for each model and cause, and for each model that was given up."""
    found = []
    for each in report.models:
        name = printable(each.model)
        for cause, count in each.errors.items():
            first = next(s for s in report.samples if s.model == each.model and s.cause == cause)
            found.append(f"{name}: {count} × {cause}, the first at {first.prompt}: {printable(first.detail)}")
        if each.stopped:
            found.append(f"{name}: given up: {printable(each.stopped)}")
    return found


def outlier_lines(report: Report) -> list[str]:
    return [
        f"{printable(each.sample.model)}: {each.sample.prompt}, iteration {each.sample.iteration}, took "
        f"{seconds(each.sample.seconds)}, its median is {seconds(each.median_seconds)}"
        for each in report.outliers
    ]


def _troubles(report: Report) -> str:
    return "\n".join(f"- {cell(words)}" for words in troubles(report)) or "Nothing."


def _outliers(report: Report) -> str:
    listed = "\n".join(f"- {cell(words)}" for words in outlier_lines(report)) or "None."
    return f"Rule: {outlier_rule()}.\n\n{listed}"


def compared_row(each: Compared) -> list[str]:
    metric = each.metric.removesuffix("_seconds").replace("_", " ") if each.metric != "seconds" else "whole answer"
    if each.ratio is None:
        return [printable(each.model), metric, "–", "–", f"{each.verdict} ({each.because})"]
    interval = f"{each.low:.2f} … {each.high:.2f}"
    return [printable(each.model), metric, f"{each.ratio:.2f}", interval, each.verdict]


COMPARED_HEAD = ("model", "of", "now / then", "99 % interval", "verdict")


def _compared(compared: Sequence[Compared], differences: Sequence[str]) -> str:
    rule = (
        "Ratio of medians, prompt by prompt; its interval by drawing the answers again 1,000 times. A difference is "
        "said when the interval is on one side of 1 and the ratio at least 10 % away from it. "
        "What drifts more slowly than a run lasts (heat, other work on the machine) is in no interval: to be sure, run "
        "both again."
    )
    rows = [[cell(text) for text in compared_row(each)] for each in compared]
    listed = "\n".join(f"- {cell(words)}" for words in differences)
    unlike_words = [f"The runs differ in more than their time:\n\n{listed}"] if differences else []
    return "\n\n".join([rule, *unlike_words, _table(list(COMPARED_HEAD), rows)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, sides, *rows))


def cell(text: str) -> str:
    """What a model or a server said, without what Markdown would take for its own."""
    return re.sub(r"([|*_`\[\]<>\\])", r"\\\1", printable(text))


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
