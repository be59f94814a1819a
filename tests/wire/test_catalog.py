"""wire.catalog answers in shapes that the official clients can read, and lists what can be asked for."""

from __future__ import annotations

import json
from typing import Any

import ollama
import openai.types
import pytest
from openai.pagination import SyncPage

from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import DEFAULT_CHAIN
from dispatcher.wire import catalog
from dispatcher.wire.decision import encode
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_ready_view, some_profiles
from tests.wire.captured import FOLDER

CHAIN = [model.name for model in DEFAULT_CHAIN]
FACTS = some_profiles().facts


def of(document: object) -> Any:
    """As a client gets it."""
    return json.loads(encode(document))


def capture(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.response.json").read_text())


def ids(fleet: FleetView, profiles: Profiles | None = None) -> list[str]:
    return [row["id"] for row in of(catalog.openai_models(fleet, profiles or some_profiles(), NOW))["data"]]


# ── what is listed ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_auto_and_the_chain_are_listed_in_both_lists_in_order() -> None:
    tags = of(catalog.tags(a_fleet(), some_profiles(), NOW))

    assert ["auto", *CHAIN] == ids(a_fleet())
    assert ["auto", *CHAIN] == [row["name"] for row in tags["models"]] == [row["model"] for row in tags["models"]]


@pytest.mark.parametrize(
    ("phi", "other_phi", "is_listed"),
    [(True, None, True), (None, None, True), (False, None, True), (False, True, True), (False, False, False)],
)
def test_a_model_that_is_known_to_be_installed_nowhere_is_not_listed(phi, other_phi, is_listed: bool) -> None:
    other = Place(server="docker:phi-2", model="phi3:mini")
    fleet = a_fleet(a_place_view(PHI, installed=phi), a_place_view(other, installed=other_phi), a_place_view(LLAMA))

    assert (["auto", "phi3:mini"] if is_listed else ["auto"]) == ids(fleet)[:-1]


def test_a_model_without_a_place_is_listed_only_while_the_engine_cannot_be_asked() -> None:
    assert ["auto", "llama3.2:3b"] == ids(a_fleet(a_place_view(LLAMA)))
    assert ["auto"] == ids(FleetView())
    assert ["auto", *CHAIN] == ids(FleetView(failing="it does not answer"))


@pytest.mark.parametrize(
    ("name", "surface", "words"),
    [
        ("phi3", "openai", "model 'phi3' not found; did you mean phi3:mini? GET /v1/models lists what there is"),
        ("PHI3:MIN", "ollama", "model 'PHI3:MIN' not found; did you mean phi3:mini? GET /api/tags lists what there is"),
        ("zzz", "ollama", "model 'zzz' not found; GET /api/tags lists what there is"),
    ],
)
def test_an_unknown_name_is_told_what_may_be_meant_and_where_the_list_is(name, surface, words) -> None:
    assert words == catalog.unknown(name, CHAIN, surface)


def test_a_place_outside_the_chain_adds_no_model() -> None:
    assert "mistral" not in ids(a_fleet(a_place_view(Place(server="ollama:x", model="mistral"))))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("auto", "auto"),
        ("auto:latest", "auto"),
        ("phi3:mini", "phi3:mini"),
        ("PHI3:MINI", "phi3:mini"),
        ("phi3", None),
        ("qwen2.5:7b", None),
        ("", None),
    ],
)
def test_one_model_is_found_as_ollama_would_find_it(name: str, found: str | None) -> None:
    fleet = a_fleet(a_place_view(PHI), a_place_view(LLAMA), a_place_view(QWEN, installed=False))
    one = catalog.openai_model(name, fleet, some_profiles(), NOW)
    shown = catalog.show(name, fleet, some_profiles(), NOW)

    assert found == (one and one["id"])
    assert (f"FROM {found}\n" if found else None) == (shown and shown["modelfile"])


def test_auto_is_no_file() -> None:
    auto, phi, *_ = of(catalog.tags(a_fleet(), some_profiles(), NOW))["models"]

    assert (0, FACTS["phi3:mini"].file_bytes) == (auto["size"], phi["size"])
    assert ("auto", ["auto"], "") == (
        auto["details"]["family"],
        auto["details"]["families"],
        auto["details"]["format"],
    )
    assert ("", [], "gguf") == (phi["details"]["family"], phi["details"]["families"], phi["details"]["format"])
    assert 64 == len(auto["digest"]) == len(phi["digest"])
    assert auto["digest"] != phi["digest"]


# ── what is loaded ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_ps_lists_what_is_loaded_and_nothing_else() -> None:
    for state in PlaceState:
        fleet = a_fleet(a_place_view(PHI, state=state, num_ctx=8192, budget_bytes=5, video_bytes=3))
        rows = of(catalog.ps(fleet, some_profiles()))["models"]

        assert ([] if state not in ("ready", "draining") else [("phi3:mini", 5, 3, 8192)]) == [
            (row["name"], row["size"], row["size_vram"], row["context_length"]) for row in rows
        ]


def test_what_was_measured_is_the_size_even_if_it_is_nothing() -> None:
    fleet = a_fleet(a_place_view(PHI, state=PlaceState.READY, measured_bytes=0, budget_bytes=5))
    (row,) = of(catalog.ps(fleet, some_profiles()))["models"]

    assert (0, 0, None) == (row["size"], row["size_vram"], row["context_length"])


def test_the_latest_to_expire_comes_first_and_a_model_only_once() -> None:
    again = Place(server="docker:llama-2", model="llama3.2:3b")
    fleet = a_fleet(
        a_ready_view(PHI, used_at_seconds=NOW, keep_alive_seconds=60.0),
        a_ready_view(LLAMA, used_at_seconds=NOW, keep_alive_seconds=60.0, leased_until_seconds=NOW + 60),
        a_ready_view(again, used_at_seconds=NOW, keep_alive_seconds=10.0),
        a_ready_view(QWEN, used_at_seconds=NOW, keep_alive_seconds=60.0, pinned=True),
    )

    assert [
        ("qwen2.5:7b", "2319-02-20T00:00:00Z"),
        ("llama3.2:3b", "2023-11-14T22:15:20Z"),
        ("phi3:mini", "2023-11-14T22:14:20Z"),
    ] == [(row["name"], row["expires_at"]) for row in of(catalog.ps(fleet, some_profiles()))["models"]]


@pytest.mark.parametrize(
    ("changes", "expires_at"),
    [
        ({"keep_alive_seconds": 0.0}, "2319-02-20T00:00:00Z"),
        ({"keep_alive_seconds": 1e300}, "2319-02-20T00:00:00Z"),
        ({"keep_alive_seconds": 60.0, "used_at_seconds": 0.0, "ready_at_seconds": NOW}, "2023-11-14T22:14:20Z"),
        ({"keep_alive_seconds": 60.0, "used_at_seconds": NOW, "ready_at_seconds": None}, "2023-11-14T22:14:20Z"),
    ],
)
def test_a_model_expires_after_its_idle_time_at_the_earliest(changes: dict[str, Any], expires_at: str) -> None:
    (row,) = of(catalog.ps(a_fleet(a_ready_view(PHI, **changes)), some_profiles()))["models"]

    assert expires_at == row["expires_at"]


def test_a_loaded_model_outside_the_chain_is_told_without_a_guess() -> None:
    foreign = a_place_view(Place(server="ollama:x", model="mistral"), state=PlaceState.READY, measured_bytes=7)
    (row,) = of(catalog.ps(a_fleet(foreign), some_profiles()))["models"]

    assert ("mistral", 7) == (row["name"], row["size"])


# ── one model, and the version ───────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_what_is_known_of_a_model_and_of_auto_the_most_of_all() -> None:
    fleet = a_fleet()
    llama, auto = (of(catalog.show(name, fleet, some_profiles(), NOW)) for name in ("llama3.2:3b", "auto"))
    phi = of(catalog.show("phi3:mini", fleet, some_profiles(), NOW))

    assert (["completion"], ["completion", "tools"], ["completion", "tools"]) == (
        phi["capabilities"],
        llama["capabilities"],
        auto["capabilities"],
    )
    assert (131072, 131072) == (
        llama["model_info"]["unknown.context_length"],
        auto["model_info"]["auto.context_length"],
    )
    assert ("unknown", "auto") == tuple(shown["model_info"]["general.architecture"] for shown in (llama, auto))


def test_auto_is_shown_even_where_nothing_can_be_asked_for() -> None:
    shown = of(catalog.show("auto", FleetView(), Profiles(), NOW))

    assert (["completion"], {"general.architecture": "auto"}) == (shown["capabilities"], shown["model_info"])


def test_the_version_is_a_ready_engines_else_any_engines_else_ours() -> None:
    stopped, ready = a_place_view(PHI, version="0.1.0"), a_ready_view(LLAMA, version="0.17.4")

    assert {"version": "0.17.4"} == of(catalog.version(a_fleet(stopped, ready), "9"))
    assert {"version": "0.1.0"} == of(catalog.version(a_fleet(stopped, a_ready_view(LLAMA)), "9"))
    assert {"version": "9"} == of(catalog.version(a_fleet(), "9"))


# ── the clients, and the real server's shapes ────────────────────────────────────────────────────────────────────────


def test_the_official_ollama_client_reads_them() -> None:
    fleet, facts = a_fleet(a_ready_view(PHI), a_place_view(LLAMA), a_place_view(QWEN)), some_profiles()

    listed = ollama.ListResponse.model_validate(of(catalog.tags(fleet, facts, NOW)))
    running = ollama.ProcessResponse.model_validate(of(catalog.ps(fleet, facts)))
    shown = ollama.ShowResponse.model_validate(of(catalog.show("llama3.2:3b", fleet, facts, NOW)))

    assert ["auto", *CHAIN] == [model.model for model in listed.models]
    assert NOW == listed.models[0].modified_at.timestamp()  # type: ignore[union-attr]
    assert [("phi3:mini", 4096)] == [(model.model, model.context_length) for model in running.models]
    assert (["completion", "tools"], 131072) == (shown.capabilities, shown.modelinfo["unknown.context_length"])  # type: ignore[index]


def test_the_official_openai_client_reads_them() -> None:
    listed = SyncPage[openai.types.Model].model_validate(of(catalog.openai_models(a_fleet(), some_profiles(), NOW)))
    one = openai.types.Model.model_validate(of(catalog.openai_model("auto", a_fleet(), some_profiles(), NOW)))

    assert ["auto", *CHAIN] == [model.id for model in listed.data]
    assert ("auto", "model", int(NOW), "dispatcher") == (one.id, one.object, one.created, one.owned_by)


@pytest.mark.parametrize("name", ["tags", "ps_two_loaded", "v1_models"])
def test_rows_have_the_fields_and_types_of_the_real_servers(name: str) -> None:
    fleet, facts = a_fleet(a_ready_view(PHI)), some_profiles()
    ours = {
        "tags": catalog.tags(fleet, facts, NOW),
        "ps_two_loaded": catalog.ps(fleet, facts),
        "v1_models": catalog.openai_models(fleet, facts, NOW),
    }[name]
    real, rows = capture(name), of(ours)
    listing = "data" if name == "v1_models" else "models"

    assert list(real) == list(rows)
    assert shape(real[listing][0]) == shape(rows[listing][-1])


def shape(value: Any) -> Any:
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


def test_show_has_no_field_that_the_real_server_has_not() -> None:
    real, ours = capture("show_phi3_mini"), of(catalog.show("phi3:mini", a_fleet(), some_profiles(), NOW))

    assert set(real) - {"tensors"} == set(ours)
    assert all(isinstance(ours[name], type(real[name])) for name in ours)
    assert set(real["details"]) == set(ours["details"])
