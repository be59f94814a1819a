"""One decision for people: as a line of the list, and whole, with every candidate, rule, number and reason."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from dispatcher.api.page.markup import NOTHING, Markup, element, joined
from dispatcher.api.page.words import cut, duration, moment, number, plural, score, size, told_list
from dispatcher.wire.shapes import CandidateKept, DecisionKept, RequestKept

_VERDICTS = {"chosen": "chosen", "fallback": "could stand in", "rejected": "ruled out"}
_decoder = msgspec.json.Decoder(DecisionKept)


def as_kept(document: bytes) -> DecisionKept | None:
    """None for one that another version kept in another shape; GET /decisions/{id} still has it as it is."""
    try:
        return _decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def line(kept: DecisionKept) -> Markup:
    """An entry of the list. What it opens to is fetched when it is opened, or read at its own address."""
    asked = kept.request
    address = quote(kept.decision_id, safe="")
    summary = element(
        "summary",
        moment(kept.at),
        element("strong", cut(kept.model, 80) if kept.model is not None else "no model", class_="model"),
        element("span", f"{asked.task}, {asked.complexity}", class_="quiet"),
        element("span", f"for {cut(asked.agent, 40)}", class_="quiet") if asked.agent else None,
        *_badges(kept),
        element("span", cut(kept.reason), class_="why"),
    )
    link = element("a", "Every candidate, rule and number", href=f"/page/decisions/{address}")
    inside = element("div", link, data_keep=True, class_="inside")
    details = element(
        "details", summary, inside, data_fragment=f"/page/fragments/decisions/{address}", class_="decision"
    )
    return element("li", details, data_key=kept.decision_id, class_="" if kept.model is not None else "refused")


def _badges(kept: DecisionKept) -> list[Markup]:
    told = [
        ("no model", kept.model is None, "bad"),
        ("degraded", kept.degraded, "warn"),
        ("low confidence", kept.confidence == "low", "warn"),
        ("dry run", kept.request.dry_run, ""),
    ]
    return [element("span", word, class_=f"badge {class_}".strip()) for word, shown, class_ in told if shown]


def whole(kept: DecisionKept) -> Markup:
    """Everything that was kept of it."""
    snapshot = kept.snapshot
    age = "at an unknown age" if snapshot.age_seconds is None else f"{duration(snapshot.age_seconds)} old"
    rests = f"snapshot {snapshot.number} ({snapshot.source}, {age}), policy {cut(kept.policy, 80)}"
    if kept.arm:
        rests += f", arm {cut(kept.arm, 80)}"
    uncounted = ", ".join(f"{count} × {rule}" for rule, count in kept.uncounted.items())
    return element(
        "div",
        element("p", cut(kept.reason, 600), class_="sentence"),
        _request(kept.request),
        _reasons(kept),
        joined(_candidate(each) for each in kept.candidates)
        if kept.candidates
        else element("p", "No place to run a model was known.", class_="quiet"),
        element("p", f"Not listed: {uncounted}.", class_="quiet") if uncounted else None,
        element("p", f"Waits for {cut(kept.waits_for)}.") if kept.waits_for else None,
        element("p", f"Ask again in {kept.retry_after_seconds} s.") if kept.model is None else None,
        element(
            "p",
            f"{cut(kept.decision_id, 80)}, confidence {kept.confidence}, {rests}",
            ", rehearsal" if kept.rehearsal else None,
            class_="quiet small",
        ),
        class_="whole",
    )


def _request(asked: RequestKept) -> Markup:
    told = [
        ("task", f"{asked.task}, {asked.complexity}"),
        ("said by", "the caller" if asked.classified_by == "caller" else "our own classifier"),
        ("seen in it", told_list(asked.evidence)),
        ("prompt", plural(asked.prompt_tokens, "token")),
        ("answer expected", plural(asked.output_tokens, "token")),
        ("prefers", asked.prefer),
        ("model asked for", "" if asked.model == "auto" else cut(asked.model)),
        ("requires", told_list(asked.requires)),
        ("deadline", "" if asked.deadline_seconds is None else duration(asked.deadline_seconds)),
        ("priority", asked.priority),
        ("agent", cut(asked.agent)),
    ]
    return pairs([(name, value) for name, value in told if value])


def pairs(told: list[tuple[str, str]]) -> Markup:
    """Names and values, side by side where there is room."""
    each = (element("div", element("dt", name), element("dd", value)) for name, value in told)
    return element("dl", *each, class_="pairs")


def _reasons(kept: DecisionKept) -> Markup:
    if not kept.reasons:
        return NOTHING
    each = (
        element("li", element("code", cut(told.code, 80)), f" {cut(told.detail, 400)}") for told in kept.reasons[:20]
    )
    return element("ul", *each, class_="reasons")


def _candidate(candidate: CandidateKept) -> Markup:
    scores = candidate.scores
    numbers = [
        ("state", candidate.state),
        ("context", plural(candidate.num_ctx, "token")),
        ("needs", size(candidate.need_bytes)),
        ("may have", "not compared" if candidate.free_bytes is None else size(candidate.free_bytes)),
        ("stops first", told_list(candidate.evicts)),
        ("endpoint", cut(candidate.endpoint) if candidate.endpoint else ""),
    ]
    head = element(
        "h4",
        element("span", cut(candidate.model, 80), class_="model"),
        element("span", _VERDICTS[candidate.verdict], class_=f"badge {candidate.verdict}"),
        element("code", candidate.rule, class_="rule") if candidate.rule else None,
    )
    return element(
        "section",
        head,
        element("p", cut(candidate.because, 600)),
        element("p", cut(candidate.place), class_="quiet small"),
        pairs([(name, value) for name, value in numbers if value]),
        _scores(candidate.score, None if scores is None else (scores.capability, scores.performance, scores.health)),
        _predicted(candidate),
        class_=f"candidate {candidate.verdict}",
    )


def _scores(total: float | None, parts: tuple[float, float, float] | None) -> Markup:
    if parts is None:
        return NOTHING
    told = zip(("capability", "performance", "health", "score"), (*parts, total), strict=True)
    each = (
        element(
            "div",
            element("dt", name),
            element("dd", element("meter", min="0", max="1", value=value, aria_label=name), score(value)),
        )
        for name, value in told
    )
    return element("dl", *each, class_="pairs scores")


def _predicted(candidate: CandidateKept) -> Markup:
    told = candidate.predicted
    if told is None:
        return NOTHING
    parts = [
        ("wait", duration(told.wait_seconds)),
        ("make room", duration(told.evict_seconds)),
        ("load", duration(told.load_seconds)),
        ("first token", duration(told.first_token_seconds)),
        ("the rest", duration(told.decode_seconds)),
        ("in all", f"{duration(told.total_seconds)} ± {told.spread_ratio:.0%}"),
        ("speed", number(told.tokens_per_second, " tokens/s")),
        ("known from", f"{told.source}, {plural(told.samples, 'sample')}"),
    ]
    return joined((element("p", "Predicted", class_="label"), pairs(parts)))
