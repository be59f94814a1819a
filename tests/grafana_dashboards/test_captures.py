"""The captures, as the live stack is served them."""

from __future__ import annotations

import httpx

from tests.e2e.captures import CaptureServer, names_of
from tests.e2e.stack import EXPOSITIONS

EXPOSITION = """\
# HELP runs_total Runs.
# TYPE runs_total counter
runs_total{name="a b"} 200 1795259526407
runs_total{name="never"} 0
# TYPE took_seconds histogram
took_seconds_bucket{le="1"} 50
took_seconds_bucket{le="+Inf"} 100
took_seconds_sum 40
took_seconds_count 100
# TYPE open_files gauge
open_files 7
# TYPE container_last_seen gauge
container_last_seen 1
"""


def test_what_counts_grows_with_each_scrape_and_the_rest_stays():
    with CaptureServer(EXPOSITION) as server:
        first, second = (httpx.get(f"http://{server.address}/metrics", trust_env=False).text for _ in range(2))

    assert 'runs_total{name="a b"} 202 1795259526407' in first, "with the timestamp it was captured with"
    assert 'runs_total{name="a b"} 204 1795259526407' in second
    assert 'runs_total{name="never"} 0' in second, "what never happened has still not"
    assert "open_files 7.0" in second
    assert "container_last_seen 1\n" not in second, "it is seen now"
    assert ["# HELP runs_total Runs.", "# TYPE runs_total counter"] == second.splitlines()[:2]


def test_a_histogram_stays_one():
    with CaptureServer(EXPOSITION) as server:
        text = [httpx.get(f"http://{server.address}/metrics", trust_env=False).text for _ in range(3)][-1]

    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("took_seconds"))
    assert ("51.5", "103", "103") == (
        lines['took_seconds_bucket{le="1"}'],
        lines['took_seconds_bucket{le="+Inf"}'],
        lines["took_seconds_count"],
    )


def test_every_sample_of_the_captures_is_read():
    for path in EXPOSITIONS.glob("*.prom"):
        text = path.read_text(encoding="utf-8")
        families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        named = {name.removesuffix(end) for name in names_of(text) for end in ("", "_bucket", "_sum", "_count")}

        assert set() == families - named, path.name
