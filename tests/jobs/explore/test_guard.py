"""Only the person who started the application is answered, whatever reaches its port."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from jobs.explore.guard import HEADERS, Guard

TOKEN, PORT = "the-token", 4321
BEARER = {"authorization": f"Bearer {TOKEN}"}


def client(host: str = f"127.0.0.1:{PORT}", *, every_address: bool = False) -> TestClient:
    inner = Starlette(
        routes=[Route("/{path:path}", lambda _: PlainTextResponse("inside"), methods=["GET", "POST"])]
    )
    guard = Guard(
        inner, TOKEN, frozenset({"127.0.0.1", "localhost", "::1"}), PORT, every_address=every_address
    )
    return TestClient(guard, base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/api/state", "/static/report.css"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer other"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": f"x={TOKEN}"}],
)
def test_without_the_token_nothing_is_answered(path, headers):
    answer = client().get(path, headers=headers)
    assert answer.status_code == 401
    assert "inside" not in answer.text


@pytest.mark.parametrize("query", ["token=", "token=other", "token=the-toke", "token=%C3%A9"])
def test_another_token_lets_nobody_in(query):
    assert client().get(f"/?{query}").status_code == 401


def test_the_printed_url_becomes_a_cookie_that_no_script_reads():
    session = client()
    answer = session.get(f"/sites/a/text?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sites/a/text")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"latentlake-{PORT}={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert session.get("/").text == "inside"


def test_the_rest_of_the_address_is_kept():
    answer = client().get(f"/sites/a/text?feature=3&token={TOKEN}&q=%3Cb%3E")
    assert answer.headers["location"] == "/sites/a/text?feature=3&q=%3Cb%3E"


def test_a_script_may_send_the_token_as_bearer():
    assert client().post("/api/x", headers=BEARER).text == "inside"


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_the_names_of_this_machine_are_answered(host):
    assert client().get("/", headers=BEARER | {"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:80",
        f"127.0.0.1:{PORT}@evil.example",
        "",
        "[",
        "a:b",
    ],
)
def test_another_host_is_refused_even_with_the_token(host):
    assert client().get("/", headers=BEARER | {"host": host}).status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.0.2.7", 200), ("[2001:db8::7]", 200), ("evil.example", 400), ("192.0.2.7.evil.example", 400)],
)
def test_where_all_addresses_are_listened_on_any_of_them_is_answered_and_no_other_name(host, status):
    headers = BEARER | {"host": f"{host}:{PORT}"}
    assert client(every_address=True).get("/", headers=headers).status_code == status
    assert client().get("/", headers=headers).status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"]
)
def test_a_request_of_another_page_is_refused_even_with_the_cookie(origin):
    session = client()
    session.get(f"/?token={TOKEN}")
    assert session.post("/api/x", headers={"origin": origin}).status_code == 403
    assert session.post("/api/x", headers={"origin": f"http://127.0.0.1:{PORT}"}).text == "inside"


def test_every_answer_has_the_policy():
    for answer in (
        client().get("/"),
        client().get("/", headers=BEARER),
        client().get("/", headers={"host": "x"}),
    ):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "'unsafe" not in HEADERS["content-security-policy"]
    assert HEADERS["content-security-policy"].startswith("default-src 'none'")
