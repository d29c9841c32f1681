"""Who may see the page: addresses, names of the host, and the password."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from conftest import Server, Tab, started, ui

pytestmark = pytest.mark.browser
Tabs = Callable[..., Tab]

SOCKET = """path => new Promise(done => { const url = new URL(path, location.href);
  url.protocol = "ws:"; const socket = new WebSocket(url);
  socket.onclose = event => done(event.code); })"""


def status(server: Server, path: str, **headers: str) -> int:
    """Of an answer to a request with other headers."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("options", [[], ["--password", ""]])
def test_other_machines_are_not_let_in_without_a_password(options: list[str]) -> None:
    command = [sys.executable, *ui("--host", "0.0.0.0", *options)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, input="\n", check=False,
        start_new_session=True,
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stdout.strip() in ("", "password:")
    assert "set a password with --password" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("path", ["/", "/dg/script.js", "/gradio_api/info"])
def test_only_its_own_names_are_answered(scripted: Server, path: str) -> None:
    port = urlsplit(scripted.url).port
    assert status(scripted, path, Host="evil.example") == 400
    assert status(scripted, path, Host=f"127.0.0.1.evil.example:{port}") == 400
    for name in ("127.0.0.1", "localhost"):
        assert status(scripted, path, Host=f"{name}:{port}") == 200


def test_other_sites_get_nothing(scripted: Server) -> None:
    assert status(scripted, "/dg/script.js", Origin="http://evil.example") == 403
    assert status(scripted, "/dg/script.js", Origin=scripted.url.rstrip("/")) == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("guarded")
    with started(home, *ui("--password", "open sesame")) as server:
        yield server


def test_nothing_is_seen_without_the_password(tabs: Tabs, guarded: Server) -> None:
    tab = tabs()
    tab.page.goto(guarded.url)
    tab.page.get_by_role("button", name="Login").wait_for()
    for path in ("dg/script.js", "dg/models", "dg/recordings/a/b", "dg/conversations/a/file"):
        assert tab.page.request.get(guarded.url + path).status == 403
    for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=a"):
        assert tab.page.request.get(guarded.url + path).status == 401
    assert tab.page.request.post(guarded.url + "dg/conversations", data="{}").status == 403
    assert tab.page.evaluate(SOCKET, "dg/runs/1/ws") == 4403


def test_the_password_opens_everything(tabs: Tabs, guarded: Server) -> None:
    tab = tabs()
    tab.allowed.append("400")  # the wrong password
    tab.page.goto(guarded.url)
    name, word = tab.page.get_by_label("username"), tab.page.get_by_label("password")
    name.fill("me")
    word.fill("open says me")
    tab.page.get_by_role("button", name="Login").click()
    tab.page.get_by_text("Incorrect").wait_for()
    name.fill("me")
    word.fill("open sesame")
    tab.page.get_by_role("button", name="Login").click()
    tab.ready()
    assert tab.ask("A 1.3.\nB .41.\nC ....\nD ..21").startswith("A 1234")
    assert tab.frames == tab.stored
    assert tab.page.evaluate(SOCKET, "dg/runs/1/ws") == 4404
    stranger = tabs()
    stranger.page.goto(tab.page.url)
    stranger.page.get_by_role("button", name="Login").wait_for()
    assert stranger.page.request.get(guarded.url + tab.run[1:]).status in (403, 404)
    assert stranger.page.evaluate(SOCKET, tab.run) == 4403
