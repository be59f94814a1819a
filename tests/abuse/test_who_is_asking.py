"""Foreign hosts, pages of other sites, keys that are wrong, missing, or not enough."""

from __future__ import annotations

import pytest

from tests.abuse.abused import ADMIN_KEY, INFER_KEY, AbusedDaemon
from tests.raw_http import request


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "localhost@evil", "[::2]:1", ""]
)
def test_a_foreign_host_is_misdirected(daemon: AbusedDaemon, host):
    answer = daemon.sent(host=host)

    assert (421, "misdirected") == (answer.status, answer.word)


def test_a_port_that_is_none_makes_a_host_foreign(daemon: AbusedDaemon):
    assert 421 == daemon.sent(host="127.0.0.1:80@evil.example").status


def test_two_hosts_are_one_too_many(daemon: AbusedDaemon):
    answer = daemon.sent(host="localhost\r\nHost: evil.example")

    assert (400, "invalid_request", "Host is given more than once") == (answer.status, answer.word, answer.detail)


def test_a_target_that_names_another_host_than_the_header(daemon: AbusedDaemon):
    answer = daemon.sent("http://evil.example/models")

    assert (400, "the request target and Host name different hosts") == (answer.status, answer.detail)


@pytest.mark.parametrize("target", ["/select", "/outcomes", "/models/phi3:mini/stop", "/leases/l-1"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "null"}, id="a sandbox"),
        pytest.param({"Origin": "https://evil.example"}, id="another site"),
        pytest.param({"Sec_Fetch_Site": "cross-site"}, id="a form"),
    ],
)
def test_a_page_of_another_site_may_not_act_not_even_with_a_key(daemon: AbusedDaemon, target, headers):
    answer = daemon.sent(target, method="POST", body=b"{}", key=ADMIN_KEY, **headers)

    assert (403, "foreign_origin") == (answer.status, answer.word)


@pytest.mark.parametrize("target", ["/select?prompt=x", "/events"])
def test_an_image_of_another_site_takes_neither_a_lease_nor_a_place(daemon: AbusedDaemon, target):
    answer = daemon.sent(target, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")

    assert (403, "foreign_origin") == (answer.status, answer.word)


def test_no_page_is_ever_told_that_it_may_read(daemon: AbusedDaemon):
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    answers = [daemon.sent("/select", method="OPTIONS", **asked), daemon.sent("/models", **asked), daemon.sent("/")]

    assert [] == [name for answer in answers for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("target", "method"),
    [("/select", "POST"), ("/models", "GET"), ("/metrics", "GET"), ("/readyz", "GET"), ("/", "GET"), ("/x", "GET")],
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no key"),
        pytest.param({"X_API_Key": "wrong"}, id="a wrong key"),
        pytest.param({"X_API_Key": INFER_KEY[:-1]}, id="most of a key"),
        pytest.param({"X_API_Key": INFER_KEY + "x"}, id="more than a key"),
        pytest.param({"Authorization": f"Basic {INFER_KEY}"}, id="another scheme"),
        pytest.param({"Authorization": f"Bearer {INFER_KEY}, Bearer {INFER_KEY}"}, id="twice in one"),
    ],
)
def test_without_a_right_key_nobody_comes_in(daemon: AbusedDaemon, target, method, headers):
    answer = daemon.raw(request(target, method=method, **headers))

    assert (401, "unauthorized", 'Bearer realm="dispatcher"') == (
        answer.status,
        answer.word,
        answer.headers["www-authenticate"],
    )


def test_a_key_in_the_query_is_no_key(daemon: AbusedDaemon):
    assert 401 == daemon.sent(f"/models?key={INFER_KEY}&api_key={INFER_KEY}", key=None).status


def test_only_liveness_is_open(daemon: AbusedDaemon):
    assert 200 == daemon.sent("/livez", key=None).status
    assert 401 == daemon.sent("/livez/../models", key=None).status
    assert 401 == daemon.sent("//livez", key=None).status


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/models/phi3:mini/start"),
        ("POST", "/models/phi3:mini/stop"),
        ("POST", "/models/phi3:mini/pin"),
        ("DELETE", "/models/phi3:mini/pin"),
        ("POST", "/models/phi3%3amini/%73top"),
        ("POST", "/experiments"),
        ("PUT", "/settings"),
    ],
)
def test_an_infer_key_does_not_do_what_is_an_admins(daemon: AbusedDaemon, method, target):
    answer = daemon.sent(target, method=method)

    assert (403, "forbidden") == (answer.status, answer.word)


def test_an_admin_does_and_the_log_says_who(daemon: AbusedDaemon):
    assert 202 == daemon.ask("POST", "/models/phi3:mini/pin", key=ADMIN_KEY).status_code
    assert 202 == daemon.ask("DELETE", "/models/phi3:mini/pin", key=ADMIN_KEY).status_code
    assert "asked=unpin model='phi3:mini' by=boss" in daemon.whole_log()
