"""How the command line shows what the daemon answered: tables and sentences for a person, colours only on a terminal.

Documents in, text out; no option, no request, no exit code belongs here. Whatever came over the wire is printed as
text, never as markup, and without the control characters that would steer a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dispatcher.vocabulary.words import Bytes, Seconds, printable

Document = Mapping[str, Any]
_METRICS = ("success", "log_latency", "quality")
PIPED_WIDTH = 200  # characters, where there is no terminal to ask
_STYLES = {
    "chosen": "bold green",
    "fallback": "cyan",
    "rejected": "dim",
    "ready": "green",
    "starting": "yellow",
    "stuck": "bold red",
    "quarantined": "bold red",
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "bold red",
    "stale": "yellow",
    "blind": "bold red",
}


def a_console() -> Console:
    """On stdout as it is now. rich finds out whether it is a terminal, and honours NO_COLOR."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def show_selection(console: Console, told: Document, give_back: str = "") -> None:
    """An answer of /select, or its refusal. give_back: the command that gives its lease back."""
    _loud(console, told)
    if told.get("model") is None:
        console.print(_text(told.get("detail"), "bold"))
        _facts(console, _refusal_facts(told))
    else:
        console.print(_text(told["reason"], "bold"))
        _facts(console, _answer_facts(told, give_back))
    _reasons(console, told)
    console.print(_candidates(told.get("candidates", ())))


def _answer_facts(told: Document, give_back: str) -> list[tuple[str, object]]:
    lease, eta = told["lease"], told["eta_seconds"]
    state = told["state"] + (f", ready in about {seconds(eta)}" if eta else "")
    fallbacks = ", ".join(f"{other['model']} ({other['state']})" for other in told["fallbacks"])
    return [
        ("model", told["model"]),
        ("endpoint", told["endpoint"]),
        ("state", state),
        ("send along", f"options.num_ctx {told['options']['num_ctx']}, keep_alive {told['keep_alive']}"),
        (
            "lease",
            None if lease is None else f"{lease['id']} until {lease['expires_at'] or 'its time begins, at ready'}",
        ),
        ("give back", f"{give_back}   or report the outcome" if lease is not None and give_back else None),
        ("fallbacks", fallbacks or None),
        ("task", f"{told['task']}, {told['complexity']} (by {told['classified_by']})"),
        ("confidence", told["confidence"] + (", degraded" if told["degraded"] else "")),
        ("decision", f"{told['decision_id']} ({told['policy']})"),
    ]


def _refusal_facts(told: Document) -> list[tuple[str, object]]:
    needed, available = told.get("needed_bytes"), told.get("available_bytes")
    memory = f"needs {size(needed)}, {size(available)} available" if needed is not None else None
    again = f"in {told['retry_after_seconds']} s" if told.get("should_retry") else "does not help by itself"
    return [("memory", memory), ("asking again", again), ("decision", told["decision_id"])]


def _candidates(candidates: Iterable[Document]) -> Table:
    table = _table("model", "place", "verdict", "rule", "because", ">score", ">predicted")
    for each in candidates:
        table.add_row(
            _text(each["model"]),
            _text(each["place"]),
            _word(each["verdict"]),
            _text(each["rule"]),
            _text(each["because"]),
            _text(number(each["score"])),
            _text(seconds(each["predicted_seconds"])),
        )
    return table


def show_decision(console: Console, told: Document) -> None:
    """One past decision, with every number."""
    _loud(console, told)
    console.print(_text(told["reason"], "bold"))
    asked, snapshot = told["request"], told["snapshot"]
    evidence = f": {'; '.join(asked['evidence'])}" if asked["evidence"] else ""
    facts: list[tuple[str, object]] = [
        ("decision", f"{told['decision_id']} at {told['at']}"),
        ("task", f"{asked['task']}, {asked['complexity']} (by {asked['classified_by']}{evidence})"),
        ("tokens", f"{asked['prompt_tokens']} prompt + {asked['output_tokens']} answer expected"),
        ("wishes", _wishes(asked)),
        ("snapshot", f"{snapshot['number']} from {snapshot['source']}, {seconds(snapshot['age_seconds'])} old"),
        ("confidence", told["confidence"] + (", degraded" if told["degraded"] else "")),
        ("policy", told["policy"] + (f", arm {told['arm']}" if told["arm"] else "")),
        ("waits for", told["waits_for"]),
        ("not listed", ", ".join(f"{count} × {rule}" for rule, count in told["uncounted"].items()) or None),
    ]
    _facts(console, facts)
    _reasons(console, told)
    console.print(_verdicts(told["candidates"]))
    console.print()
    console.print(_numbers(told["candidates"]))


def _wishes(asked: Document) -> str | None:
    said = [f"prefer {asked['prefer']}", f"priority {asked['priority']}"]
    said += [f"model {asked['model']}"] if asked["model"] != "auto" else []
    said += [f"requires {', '.join(asked['requires'])}"] if asked["requires"] else []
    said += [f"deadline {seconds(asked['deadline_seconds'])}"] if asked["deadline_seconds"] is not None else []
    said += [f"agent {asked['agent']}"] if asked["agent"] else []
    said += ["dry run"] if asked["dry_run"] else []
    return ", ".join(said)


def _verdicts(candidates: Iterable[Document]) -> Table:
    table = _table("model", "place", "state", "verdict", "rule", "because", "evicts")
    for each in candidates:
        table.add_row(
            _text(each["model"]),
            _text(each["place"]),
            _word(each["state"]),
            _word(each["verdict"]),
            _text(each["rule"]),
            _text(each["because"]),
            _text(", ".join(each["evicts"])),
        )
    return table


def _numbers(candidates: Iterable[Document]) -> Table:
    table = _table(
        "model", ">context", ">needs", ">free", ">score", ">capability", ">performance", ">health",
        ">wait", ">evict", ">load", ">first token", ">decode", ">total", "from",
    )  # fmt: skip
    for each in candidates:
        scores, predicted = each["scores"] or {}, each["predicted"] or {}
        parts = ("wait", "evict", "load", "first_token", "decode", "total")
        source = f"{predicted['source']}, n={predicted['samples']}" if predicted else None
        table.add_row(
            _text(each["model"]),
            _text(f"{each['num_ctx']:,}"),
            _text(size(each["need_bytes"])),
            _text(size(each["free_bytes"])),
            _text(number(each["score"])),
            *(_text(number(scores.get(name))) for name in ("capability", "performance", "health")),
            *(_text(seconds(predicted.get(f"{name}_seconds"))) for name in parts),
            _text(source),
        )
    return table


def show_recommendations(console: Console, told: Document) -> None:
    _loud(console, told)
    console.print(_text(told["reason"], "bold"))
    _facts(console, [("task", f"{told['task']}, {told['complexity']} (by {told['classified_by']})")])
    _reasons(console, told)
    table = _table(">rank", "model", "place", "state", "because", ">score", ">predicted")
    for each in [*told["recommendations"], *told["rejected"]]:
        because = each["because"] if each["rule"] is None else f"{each['rule']}: {each['because']}"
        table.add_row(
            _text(each["rank"]),
            _text(each["model"]),
            _text(each["place"]),
            _word(each["state"]),
            _text(because),
            _text(number(each["score"])),
            _text(seconds(each["predicted_seconds"])),
        )
    console.print(table)


def show_status(console: Console, ready: Document, snapshot: Document, models: Document) -> None:
    _loud(console, models)
    console.print(_text("ready" if ready["ready"] else "not ready", "bold green" if ready["ready"] else "bold red"))
    failing = ", ".join(f"{source} ({reason})" for source, reason in snapshot["failing"].items())
    _facts(
        console,
        [
            *((check["name"], check["because"]) for check in ready["checks"] if not check["ok"]),
            ("snapshot", f"{snapshot['number']} from {snapshot['source']}, {seconds(snapshot['age_seconds'])} old"),
            ("freshness", snapshot["freshness"]),
            ("failing", failing or None),
            ("thresholds held", ", ".join(snapshot["latches"]) or None),
            ("provider", models["provider"] + (f", failing: {models['failing']}" if models["failing"] else "")),
            ("memory", _ledger(models)),
            ("pinned", models["pinned_model"]),
        ],
    )
    console.print(_places(models))
    console.print()
    signals = _table("signal", "of", ">value", ">age", "source")
    for each in snapshot["signals"]:
        if each["unknown"] == "never_seen":
            continue
        signals.add_row(
            _text(each["signal"]),
            _text(each["subject"] or ("host" if each["signal"].startswith("host_") else "–")),
            _text(value_of(each["signal"], each["value"])),
            _text(seconds(each["age_seconds"])),
            _text(each["source"] if each["unknown"] is None else f"unknown: {each['unknown']}"),
        )
    console.print(signals if signals.row_count else _text("no signal was ever seen", "yellow"))


def _ledger(models: Document) -> str:
    if models["capacity_bytes"] is None:
        return f"{size(models['reserved_bytes'])} promised, capacity unknown"
    shared = models["capacity_bytes"] - models["reserve_bytes"]
    return f"{size(models['reserved_bytes'])} of {size(shared)} promised, {size(models['reserve_bytes'])} kept free"


def _places(models: Document) -> Table:
    table = _table("model", "place", "state", ">holds", ">leases", ">in flight", "because")
    for model in models["models"]:
        for place in model["places"] or [None]:
            if place is None:
                table.add_row(_text(model["model"]), *[_text(None)] * 5, _text("no place to run it is known"))
                continue
            table.add_row(
                _text(model["model"]),
                _text(place["place"]),
                _state(place),
                _text(size(place["budget_bytes"] or None)),
                _text(place["leases"]),
                _text(place["in_flight"]),
                _text(place["because"]),
            )
    return table


def show_models(console: Console, told: Document) -> None:
    _loud(console, told)
    table = _table("model", "health", "features", "place", "state", ">context", ">footprint", ">load", "endpoint")
    for model in told["models"]:
        for place in model["places"] or [None]:
            name = model["model"] + ("" if model["in_chain"] else " (not in the chain)")
            features = _text(", ".join(model["features"]))
            if place is None:
                table.add_row(_text(name), _text("no place"), features, *[_text(None)] * 6)
                continue
            table.add_row(
                _text(name),
                _word(place["health"]),
                features,
                _text(place["place"]),
                _state(place),
                _text(place["num_ctx"]),
                _text(size(place["footprint_bytes"])),
                _text(seconds(place["load_seconds"])),
                _text(place["endpoint"]),
            )
    console.print(table)


def show_experiments(console: Console, told: Document) -> None:
    """Each arm with what it has done; the verdict under it."""
    if not told["experiments"]:
        console.print(_text("no experiment has run; dispatcher experiments start FILE begins one"))
    for one in told["experiments"]:
        console.print(_word(one["id"]) + _text(f"  {one['mode']}, {one['phase'].replace('_', ' ')}", "bold"))
        console.print(_text(one["verdict"]))
        table = _table("arm", "policy", "models", ">requests", ">no outcome", ">success", ">seconds", ">quality")
        values = {each["metric"]: each for each in one["metrics"]}
        for name in ("a", "b"):
            arm, missing = one[name], one[name]["missing_ratio"]
            success, latency, quality = (values[metric][name]["value"] for metric in _METRICS)
            table.add_row(
                _text(name.upper()),
                _text(", ".join(f"{key} {value}" for key, value in arm["policy"].items()) or "as in force"),
                _text(", ".join(arm["models"])),
                _text(arm["assigned"]),
                _text(None if missing is None else f"{missing:.0%}"),
                _text(None if success is None else f"{success:.1%}"),
                _text(seconds(latency)),
                _text(number(quality)),
            )
        console.print(table)


def _state(place: Document) -> Text:
    eta = f", ready in {seconds(place['eta_seconds'])}" if place["eta_seconds"] else ""
    missing = ", not installed" if place["installed"] is False else ""
    return _word(place["state"], f"{eta}{missing}{', pinned' if place['pinned'] else ''}")


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clean(value: object) -> str:
    """Text that cannot steer a terminal."""
    return printable(str(value))


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return str(Seconds(value))


def size(value: float | None) -> str:
    if value is None:
        return "–"
    return str(Bytes(value))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def value_of(signal: str, value: float | None) -> str:
    """In the unit that the signal's name says."""
    if value is None:
        return "–"
    if signal.endswith("_bytes"):
        return size(value)
    if signal.endswith("_ratio"):
        return f"{value:.1%}"
    return f"{value:.1f} s" if "_seconds" in signal else f"{value:g}"


def _text(value: object, style: str = "") -> Text:
    return Text("–" if value is None else clean(value), style=style)


def _word(word: str, more: str = "") -> Text:
    return Text(clean(word), style=_STYLES.get(word, "")) + Text(clean(more))


def _table(*columns: str) -> Table:
    """A leading > aligns right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _facts(console: Console, facts: Iterable[tuple[str, object]]) -> None:
    """Two columns; what is None is left out."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        if value is not None:
            grid.add_row(_text(name, "dim"), _text(value))
    console.print(grid)
    console.print()


def _reasons(console: Console, told: Document) -> None:
    for reason in told.get("reasons", ()):
        console.print(_text(f"! {reason['code']}: {reason['detail']}", "yellow"))


def _loud(console: Console, told: Document) -> None:
    if told.get("rehearsal"):
        console.print(_text("REHEARSAL: simulated models on a simulated host", "bold yellow"))
