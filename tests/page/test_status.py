"""What the status page says of a house, and that nothing anybody can name becomes more than text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.api.page.decision import line, whole
from dispatcher.api.page.document import document
from dispatcher.api.page.status import MOST_DECISIONS, status
from dispatcher.vocabulary.decision import MAX_CANDIDATES, Reason
from dispatcher.vocabulary.fleet import Claim, FleetView, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.signal import HOST, Freshness, Snapshot, UnknownReason
from dispatcher.wire.decision import kept
from dispatcher.wire.view_shapes import Check, Readiness
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_reading,
    a_ready_view,
    a_request,
    a_snapshot,
    some_profiles,
)
from tests.decisions import a_chosen, a_decision, a_rejected, no_decision
from tests.page.builders import an_end, some_seen
from tests.page.reading import Page

OF_A_PAGE = frozenset(
    """html head meta title link script body header main footer nav article section div a p span strong code time h1 h2
    h3 h4 ul ol li dl dt dd details summary form label input textarea select option button meter svg rect polygon
    polyline""".split()  # noqa: SIM905  # a list of 45 strings says no more
)
NASTY = [
    pytest.param("<img src=x onerror=alert(1)>", id="an image"),
    pytest.param('"><script>alert(1)</script>', id="a script that closes an attribute"),
    pytest.param("' onmouseover='alert(1)", id="an attribute"),
    pytest.param("</textarea></select></title><b>", id="ends of elements"),
    pytest.param("&lt;b&gt; &#60;i&#62;", id="escaped already"),
    pytest.param("javascript:alert(1)", id="a scheme"),
]


def shown(**changes) -> Page:
    return Page(document(status(some_seen(**changes)), fragment="/page/fragments/status").decode())


def nasty_seen(name: str):
    place = Place(server=f"docker:{name}", model=name)
    view = a_ready_view(LLAMA)
    view = replace(view, place=place, because=name, breaker="open", breaker_because=name, pinned=True, endpoint=name)
    request = a_request(agent=name, model=name, evidence=(name,), id=name, complexity=name, task=name)
    candidate = replace(a_chosen(), place=place, endpoint=name, evicts=(place,))
    decision = a_decision(
        candidate,
        request=request,
        sentence=name,
        policy=name,
        arm=name,
        reasons=(Reason(code=name, detail=name),),
        uncounted=((name, 1),),
        snapshot_source=name,
    )
    none = {"high": 0, "normal": 1, "batch": 0}
    return {
        "fleet": a_fleet(
            view,
            a_place_view(replace(place, model=f"{name}2"), state=PlaceState.STUCK, because=name),
            failing=name,
            provider=name,
            pinned_model=name,
            claims=(Claim(place=place, victims=(place,), decision_id=name, until_seconds=NOW),),
        ),
        "snapshot": a_snapshot(
            failing={name: UnknownReason.PROM_STALE}, latches=frozenset({f"memory_short:{name}"}), source=name
        ),
        "readiness": Readiness(ready=False, checks=(Check(name=name, ok=False, because=name),)),
        "lines": (Line(place=place, running=1, draining=1, slots=1, waiting=none, limits=none),),
        "decisions": (kept(decision),),
        "ends": (an_end(model=name),),
        "history_trouble": name,
        "profiles": replace(some_profiles(), facts={name: some_profiles().facts["phi3:mini"]}),
    }


@pytest.mark.parametrize("name", NASTY)
def test_a_name_that_is_markup_stays_text_in_every_field(name):
    page = shown(**nasty_seen(name))

    assert set() == page.names() - OF_A_PAGE
    assert [] == page.unclosed
    assert 1 == len([tag for tag, _ in page.tags if tag == "script"])
    assert set() == {attribute for attribute in page.attributes() if attribute.startswith("on") or attribute == "style"}
    assert " ".join(name.split()) in page.text


@pytest.mark.parametrize("name", NASTY)
def test_a_whole_decision_holds_nothing_but_text_either(name):
    page = Page(whole(nasty_seen(name)["decisions"][0]))

    assert set() == page.names() - OF_A_PAGE
    assert set() == {attribute for attribute in page.attributes() if attribute.startswith("on") or attribute == "style"}


def test_every_link_leads_to_this_daemon():
    page = shown(**nasty_seen("javascript:alert(1)"))
    targets = [given.get("href") or given.get("src") for tag, given in page.tags if tag in ("a", "link", "script")]

    assert [] == [target for target in targets if not (target or "").startswith(("/", "#content"))]


def test_writing_cannot_be_turned_by_a_name():
    assert "\u202e" not in shown(decisions=(kept(a_decision(request=a_request(agent="\u202egnp.exe"))),)).source


def test_what_nobody_knows_is_said_to_be_unknown_and_never_0():
    nothing = a_snapshot(readings=dict.fromkeys(("host_memory_available_bytes", "host_cpu_busy_ratio")))
    fleet = a_fleet(a_ready_view(LLAMA, measured_bytes=None), capacity_bytes=None)
    page = shown(snapshot=nothing, fleet=fleet, ends=(an_end(tokens_per_second=None),))

    assert "memory available unknown" in page.text
    assert "CPU busy unknown" in page.text
    assert "How much memory this machine has is unknown" in page.text
    assert "in use unknown" in page.text
    assert "Tokens/s unknown" in page.text
    assert "free for models unknown" in page.text


def test_a_reading_that_is_missing_says_why():
    readings = {("host_cpu_busy_ratio", HOST): a_reading(None, unknown=UnknownReason.PROM_STALE)}

    assert "CPU busy unknown (prom_stale)" in shown(snapshot=replace(a_snapshot(), readings=readings)).text


def test_an_empty_house_is_a_whole_page():
    page = shown(
        fleet=FleetView(),
        snapshot=Snapshot(number=0, at_seconds=0.0),
        profiles=Profiles(),
        decisions=(),
        ends=(),
    )

    assert [] == page.unclosed
    assert "No place to run a model is known" in page.text
    assert "No snapshot yet" in page.text
    assert "No request has ended since this daemon started" in page.text
    assert "None is running. An experiment" in page.text


def test_all_is_well_where_it_is():
    assert "All is well" in shown().text


def test_a_rehearsal_says_so():
    fleet = replace(some_seen().fleet, rehearsal=True)

    assert "Rehearsal: These are simulated models" in shown(fleet=fleet).text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"snapshot": a_snapshot(failing={"prometheus": UnknownReason.PROM_UNREACHABLE}, source="host")},
            "Degraded: prometheus is failing (prom_unreachable). Decisions are degraded; readings come from host.",
            id="a source fails",
        ),
        pytest.param({"snapshot": a_snapshot(freshness=Freshness.STALE)}, "Memory readings are stale", id="stale"),
        pytest.param({"snapshot": a_snapshot(freshness=Freshness.BLIND)}, "Attention: Blind", id="blind"),
        pytest.param({"snapshot": a_snapshot(latches=frozenset({"cpu_busy"}))}, "the CPU is busy", id="a latch"),
        pytest.param({"fleet": a_fleet(failing="no answer")}, "engine cannot be asked: no answer", id="the engine"),
        pytest.param({"fleet": a_fleet(draining=True)}, "Attention: It is leaving", id="leaving"),
        pytest.param({"fleet": a_fleet(a_ready_view(LLAMA, breaker="open"))}, "Failing lately", id="a breaker"),
        pytest.param(
            {"fleet": a_fleet(a_place_view(LLAMA, state=PlaceState.QUARANTINED, because="6 failed starts"))},
            "docker:llama is quarantined: 6 failed starts",
            id="quarantine",
        ),
        pytest.param(
            {"readiness": Readiness(ready=False, checks=(Check(name="model", ok=False, because="nothing fits"),))},
            "No model would be found: nothing fits",
            id="no model",
        ),
        pytest.param(
            {"readiness": Readiness(ready=True, checks=(Check(name="history", ok=False, because="disk full"),))},
            "The history: disk full",
            id="the history",
        ),
        pytest.param({"history_trouble": "disk full"}, "Older ones cannot be read: disk full", id="older decisions"),
    ],
)
def test_what_is_wrong_is_said(changes, said):
    assert said in shown(**changes).text


def test_the_memory_bar_is_to_scale():
    fleet = a_fleet(a_ready_view(LLAMA, budget_bytes=4 * 1024**3), capacity_bytes=16 * 1024**3, reserve_bytes=1024**3)
    page = shown(fleet=fleet)
    (svg,) = page.with_class("memory-bar")
    widths = {given["class"]: given["width"] for tag, given in page.tags if tag == "rect" and given["height"] == "28"}

    assert {"tone-1": "250", "reserve": "62.5"} == widths
    assert "4.0 GiB of 15.0 GiB promised to models" == svg["aria-label"]


def test_a_decision_is_told_with_every_candidate_rule_number_and_reason():
    page = Page(whole(kept(a_decision())))

    for said in (
        "llama3.2:3b chosen",
        "phi3:mini could stand in",
        "stops first docker:qwen",
        "qwen2.5:7b ruled out memory_short needs 5.4 GiB, 3.9 GiB free",
        "capability 0.78 performance 0.43 health 1.00 score 0.68",
        "the rest 5.7 s in all 6.1 s ± 50%",
        "17.2 tokens/s known from history, 12 samples",
        "prom_stale the newest sample is 20 s old",
        "snapshot 4127 (prometheus, 2.1 s old), policy default@3f2c",
    ):
        assert said in page.text


def test_a_decision_for_nothing_says_why_and_when_to_ask_again():
    page = Page(whole(kept(no_decision())))

    assert "Nothing fits." in page.text
    assert "Ask again in 5 s." in page.text


def test_a_decision_id_cannot_leave_its_address():
    page = Page(line(kept(a_decision(request=a_request(id="../../models?x=1#y")))))

    assert ["/page/decisions/..%2F..%2Fmodels%3Fx%3D1%23y"] == [given["href"] for tag, given in page.tags if tag == "a"]


def test_much_of_everything_stays_bounded():
    long = "x" * 5000
    many = tuple(replace(PHI, model=f"{long}{n}") for n in range(300))
    candidates = tuple(a_rejected(QWEN) for _ in range(MAX_CANDIDATES))
    decisions = [kept(no_decision(*candidates, request=a_request(id=f"d-{n}", agent=long[:200]))) for n in range(500)]
    page = shown(
        fleet=a_fleet(*(a_place_view(place, because=long, budget_bytes=1024) for place in many)),
        decisions=decisions,
        ends=[an_end(model=f"m-{n}") for n in range(200)],
    )

    assert MOST_DECISIONS == len(page.with_class("decision"))
    assert "236 more: GET /models lists them" in page.text
    assert len(page.source) < 512 * 1024
    assert len(whole(decisions[0])) < 64 * 1024


def test_only_an_admin_gets_buttons():
    said = {role: shown(role=role) for role in ("infer", "admin")}
    acts = {role: [given["data-act"] for _, given in page.tags if "data-act" in given] for role, page in said.items()}

    assert {"infer": [], "admin": ["pin", "start", "stop", "start"]} == acts
    assert "needs an admin's key" in said["infer"].text


def test_sparklines_leave_out_what_failed_and_count_it():
    ends = [an_end(seconds=1.0), an_end(seconds=180.0, status="timeout"), an_end(seconds=3.0)]
    page = shown(ends=ends)
    lines = [given["points"] for tag, given in page.tags if tag == "polyline"]

    assert "3 requests, 1 failed" in page.text
    assert "3,20.3 117,3" == lines[0]
