"""Who may ask: other sites, other names of the server, and clients without the token may not."""

import asyncio

import pytest
from p2pzoo_serve.commands import make_access, parse_public_url, read_token
from p2pzoo_serve.guard import HEADERS, WITHOUT_TOKEN, Access
from p2pzoo_serve.interface import Refusal
from p2pzoo_serve.server import is_loopback, listen

from p2pzoo.utils.errors import UserError

HOST = "127.0.0.1:8000"
LOOPBACK = Access(frozenset({HOST, "zoo.example"}), frozenset({"https://zoo.example"}))
TOKEN = "0123456789abcdef"


def check(access, method="GET", path="/model", **headers):
    """The status of the refusal, or None. Header names are given with _ in place of -."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        access.check(method, path, raw)
    except Refusal as refusal:
        return refusal.status
    return None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:8001", "", "127.0.0.1:8000.evil.example"])
def test_on_loopback_another_host_is_refused(host):
    assert check(LOOPBACK, host=host) == 421
    assert check(LOOPBACK) == 421


def test_two_hosts_are_refused():
    with pytest.raises(Refusal) as refusal:
        LOOPBACK.check("GET", "/", [(b"host", HOST.encode()), (b"host", b"evil.example")])
    assert refusal.value.status == 421


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8001", "http://[", "http://127.0.0.1:8000@evil.example"]
)
def test_a_post_of_another_origin_is_refused(origin):
    assert check(LOOPBACK, "POST", host=HOST, origin=origin) == 403


def test_a_post_of_the_page_and_of_programs_is_answered():
    assert check(LOOPBACK, "POST", host=HOST, origin="http://127.0.0.1:8000", sec_fetch_site="same-origin") is None
    assert check(LOOPBACK, "POST", host=HOST) is None
    assert check(LOOPBACK, "POST", host=HOST, sec_fetch_site="none") is None


def test_a_browser_that_sends_no_origin_says_the_site():
    assert check(LOOPBACK, "POST", host=HOST, sec_fetch_site="cross-site") == 403


def test_the_origin_of_a_reverse_proxy_is_its_own_also_where_it_changes_the_host():
    assert check(LOOPBACK, "POST", host=HOST, origin="https://zoo.example") is None
    assert check(LOOPBACK, "POST", host="zoo.example", origin="https://zoo.example") is None
    assert check(LOOPBACK, "POST", host=HOST, origin="http://zoo.example") == 403


class TestAClientThatStopsReading:
    """The app of the server as it is: Starlette hides what `send` raises, once the answer has begun."""

    def ask(self, serve, image, patience, *, fails=False, host=HOST):
        """POST an image to the real app, whose client takes the head of the answer and no more."""
        app = serve(patience=patience).app
        content, sent = image(64, 64, 0), []

        async def receive():
            if not sent and not asked:
                asked.append(True)
                return {"type": "http.request", "body": content, "more_body": False}
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message["type"])
            if len(sent) > 1:
                if fails:
                    raise RuntimeError("a fault of the server")
                await asyncio.sleep(60)

        asked = []
        headers = [(b"host", host.encode()), (b"content-type", b"image/png"), (b"content-length", b"%d" % len(content))]
        scope = {
            "type": "http", "method": "POST", "path": "/translate", "raw_path": b"/translate", "query_string": b"",
            "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("y", 2),
            "root_path": "",
        }  # fmt: skip
        asyncio.run(app(scope, receive, send))
        return sent

    def test_it_leaves_no_traceback(self, serve, image):
        assert self.ask(serve, image, 2.0)[:2] == ["http.response.start", "http.response.body"]

    def test_a_refusal_that_nobody_takes_leaves_none_either(self, serve, image):
        assert self.ask(serve, image, 0.2, host="evil.example") == ["http.response.start", "http.response.body"]

    def test_other_failures_are_not_hidden(self, serve, image):
        with pytest.raises(RuntimeError, match="a fault of the server"):
            self.ask(serve, image, 2.0, fails=True)


class TestToken:
    ACCESS = Access(None, token=TOKEN)

    @pytest.mark.parametrize(
        "given", ["", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", TOKEN, "Bearer ä"]
    )
    def test_without_the_token_nothing_is_answered(self, given):
        assert check(self.ACCESS, host="any", authorization=given) == 401
        assert check(self.ACCESS, "POST", "/translate", host="any") == 401

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_with_it_everything_is(self, scheme):
        assert check(self.ACCESS, "POST", "/translate", host="any", authorization=f"{scheme} {TOKEN}") is None

    @pytest.mark.parametrize("path", WITHOUT_TOKEN)
    def test_the_page_itself_needs_none_since_it_holds_no_secret(self, path):
        assert check(self.ACCESS, path=path, host="any") is None

    @pytest.mark.parametrize(
        "path", ["/model", "/translate", "/batch", "/model/", "//", "/page.js/../model", "/Health"]
    )
    def test_all_else_does(self, path):
        assert check(self.ACCESS, path=path, host="any") == 401

    def test_it_is_read_from_a_file_or_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.delenv("P2PZOO_SERVE_TOKEN", raising=False)
        assert read_token(None) is None
        monkeypatch.setenv("P2PZOO_SERVE_TOKEN", TOKEN)
        assert read_token(None) == TOKEN
        (tmp_path / "token").write_text(f"{TOKEN[::-1]}\n")
        assert read_token(tmp_path / "token") == TOKEN[::-1]

    @pytest.mark.parametrize("token", ["short", "with blanks 0123456789", "ä" * 20, "line\nline 0123456789"])
    def test_a_weak_one_is_refused_and_not_printed(self, token, tmp_path):
        (tmp_path / "token").write_text(token)
        with pytest.raises(UserError, match="a token has at least 16 ASCII characters") as error:
            read_token(tmp_path / "token")
        assert token not in str(error.value)

    def test_a_file_that_does_not_exist_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"none: No such file or directory: give a file"):
            read_token(tmp_path / "none")


class TestAccess:
    def test_on_loopback_it_is_the_names_of_this_machine(self):
        with listen("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            access = make_access(listener, "127.0.0.1", None, None)
        assert access.hosts == {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
        assert access.token is None

    def test_elsewhere_it_is_the_token(self):
        with listen("0.0.0.0", 0) as listener:
            assert not is_loopback(listener)
            assert make_access(listener, "0.0.0.0", TOKEN, None) == Access(None, frozenset(), TOKEN)

    def test_a_port_in_use_and_an_unknown_host_are_refused(self):
        with (
            listen("127.0.0.1", 0) as listener,
            pytest.raises(UserError, match="Address already in use: choose another --port"),
        ):
            listen("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(UserError, match="no such address"):
            listen("256.1.1.1", 0)

    @pytest.mark.parametrize(
        "url", ["zoo.example", "ftp://zoo.example", "https://", "https://a@b", "https://a/?q", "http://["]
    )
    def test_a_public_url_that_is_none_is_refused(self, url):
        with pytest.raises(UserError, match="is no address of a page"):
            parse_public_url(url)


def test_every_answer_has_the_headers_of_a_strict_page(serve):
    client = serve()
    for path in ("/", "/page.css", "/page.js", "/openapi.json", "/model", "/nowhere"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "'unsafe" not in HEADERS["content-security-policy"]


def test_refusals_are_documents(serve):
    client = serve(access=Access(None, token=TOKEN))
    answer = client.post("/translate", content=b"x", headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["error"].startswith("no valid token: open the address with #token=")
    assert client.get("/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert serve().get("/model", headers={"Host": "evil.example"}).status_code == 421
