"""A real server on a free port of loopback: slow, hostile and vanished clients, and the end by Ctrl-C."""

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from p2pzoo_serve import server as server_module
from p2pzoo_serve.commands import load_served_model
from p2pzoo_serve.interface import ClientGone, Limits, Refusal
from p2pzoo_serve.uploads import read_body
from PIL import Image
from served_images import encode, make_image, unzip
from serving import running

from p2pzoo.models.safetensors_io import load_tensors, save_model_tensors


@pytest.mark.parametrize("evaluated", ["last", "average"])
def test_a_run_is_served_with_the_weights_that_its_numbers_measured(with_dropout, tmp_path, evaluated):
    tensors, header = load_tensors(with_dropout / "model.safetensors")
    for name, weights in (("model", "last"), ("average", "average")):
        save_model_tensors(tmp_path / f"{name}.safetensors", tensors, header | {"weights": weights})
    (tmp_path / "status.json").write_text('{"state": "complete"}')
    (tmp_path / "recipe.toml").write_text(f'[evaluate]\nweights = "{evaluated}"\n')
    assert load_served_model(tmp_path, "cpu", "fp32").weights == evaluated
    assert load_served_model(tmp_path, "cpu", "fp32", "last").weights == "last"
    (tmp_path / "status.json").unlink()
    assert load_served_model(tmp_path, "cpu", "fp32").weights == "last", "of a folder with one model: that model"


async def exchange(port, *parts, pause=0.0):
    """Send parts of a request, and return (status, headers, body); status 0 for a connection that is just closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):  # the server may refuse before it has read all
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
    answer = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            answer += chunk
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]) if answer else 0, headers, body


def head(port, line="POST /translate", kind="image/png", host=None, **headers):
    fields = {"Host": host or f"127.0.0.1:{port}", "Connection": "close", "Content-Type": kind, **headers}
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{line} HTTP/1.1\r\n{text}\r\n".encode()


def post(port, content, **headers):
    return head(port, Content_Length=len(content), **headers) + content


def form(names, content):
    """(body, kind) of a multipart upload of this content under each name."""
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name in names
    ]
    return b"".join(parts) + b"--B--\r\n", "multipart/form-data; boundary=B"


class TestSlowBodies:
    @staticmethod
    def read(limits, *messages, pause=0.0):
        async def receive():
            await asyncio.sleep(pause)
            return waiting.pop(0) if waiting else await asyncio.Event().wait()

        async def collect():
            return b"".join([chunk async for chunk in read_body(receive, {}, limits)])

        waiting = [*messages]
        return asyncio.run(collect())

    def test_a_body_that_stops_arriving_is_given_up(self):
        with pytest.raises(Refusal, match="arrives too slowly") as refusal:
            self.read(Limits(patience=0.05), {"type": "http.request", "body": b"a", "more_body": True})
        assert refusal.value.status == 408

    def test_a_body_that_drips_is_given_up(self):
        drops = [{"type": "http.request", "body": b"a", "more_body": True}] * 1000
        with pytest.raises(Refusal, match="arrives too slowly"):
            self.read(Limits(patience=0.3, rate=1000), *drops, pause=0.01)

    def test_a_client_that_goes_away_is_noticed(self):
        with pytest.raises(ClientGone):
            self.read(Limits(), {"type": "http.disconnect"})

    def test_a_body_ends_with_its_last_chunk(self):
        messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
        assert self.read(Limits(), *messages) == b"ab"


def test_a_client_that_goes_away_frees_its_place_at_once(serve):
    """With one place in the queue: a third request is refused, until the client of the second is gone."""
    service = serve(queue=1).service
    begun, may_end = threading.Event(), threading.Event()
    service.worker.submit(lambda: begun.set() or may_end.wait(60))
    assert begun.wait(60)

    async def clients(port):
        request = post(port, make_image())
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        while not service.worker.waiting:
            await asyncio.sleep(0.01)
        busy = await exchange(port, request)
        assert (busy[0], busy[1]["retry-after"]) == (503, "5")
        writer.close()
        while service.worker.waiting:
            await asyncio.sleep(0.01)
        third = asyncio.ensure_future(exchange(port, request))
        while not service.worker.waiting:
            await asyncio.sleep(0.01)
        may_end.set()
        assert (await third)[0] == 200

    try:
        with running(service) as port:
            asyncio.run(asyncio.wait_for(clients(port), 100))
    finally:
        may_end.set()


def test_headers_that_do_not_end_close_the_connection(serve, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    with running(serve().service) as port:
        began = time.monotonic()
        assert asyncio.run(exchange(port, b"GET / HTTP/1.1\r\nHost: a"))[0] == 0
        assert asyncio.run(exchange(port))[0] == 0
        assert time.monotonic() - began < 60


# --- many clients at once ----------------------------------------------------------------------------------------


def requests(port, content):
    """{name: (parts of a request, the statuses that are right, a check of the body or None)}."""
    bomb = encode(Image.new("1", (20_000, 20_000)))
    odd, kind = form(["../../../../tmp/evil", "C:\\evil.png", "/etc/cron.d/evil", "..\\..\\evil"], content)
    one, _ = form(["photo.png"], content)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    chunked = head(port, Transfer_Encoding="chunked")
    array = io.BytesIO()
    np.save(array, np.zeros((64, 64, 3), np.uint8))
    shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999, 999999, 3), }".ljust(118)
    terabytes = b"\x93NUMPY\x01\x00v\x00" + shape
    return {
        "raw": ([post(port, content)], {200}, None),
        "form": ([post(port, one, kind=kind)], {200}, None),
        "chunked": ([chunked, b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n"], {200}, None),
        "array": ([post(port, array.getvalue(), kind="application/octet-stream")], {200}, "image"),
        "names": ([post(port, odd, kind=kind, line="POST /batch")], {200}, "zip"),
        "samples": ([post(port, content, line="POST /translate?samples=2")], {200}, "zip"),
        "model": ([head(port, "GET /model")], {200}, "json"),
        "page": ([head(port, "GET /")], {200}, "page"),
        "bomb": ([post(port, bomb)], {413}, "error"),
        "array that claims terabytes": ([post(port, terabytes)], {422}, "error"),
        "truncated": ([post(port, content[: len(content) // 2])], {422}, "error"),
        "no image": ([post(port, b"<svg onload=alert(1)>")], {422}, "error"),
        "wrong type": ([post(port, content, kind="text/plain")], {415}, "error"),
        "too large": ([post(port, bytes(1_100_000))], {413}, "error or closed"),
        "too large by its header": ([head(port, Content_Length=10**12), b"x"], {413}, "error or closed"),
        "endless": ([chunked, *[chunk] * 200], {413}, "error or closed"),
        "huge headers": ([head(port, "GET /", X_Large="a" * 100_000)], {400, 431}, None),
        "many headers": ([head(port, "GET /", **{f"X-{i}": "a" * 50 for i in range(1000)})], {400, 431}, None),
        "garbage": ([b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n"], {400}, None),
        "other host": ([post(port, content, host="evil.example")], {421}, "error or closed"),
        "other origin": ([post(port, content, Origin="http://evil.example")], {403}, "error or closed"),
        "path": ([head(port, "GET /..%2f..%2f..%2fetc/passwd")], {404}, "error"),
        "option": ([post(port, content, line="POST /translate?size=9")], {400}, "error or closed"),
        "slow": ([head(port, Content_Length=1000), b"slow"], {408}, "error"),
    }  # fmt: skip


def check_answer(name, answer, statuses, check, expected):
    status, headers, body = answer
    if check == "error or closed" and status == 0:
        return  # the client was still sending
    assert status in statuses, (name, status, body[:300])
    if status == 200 and check is None:
        assert body == expected, name
    elif check == "image":
        assert Image.open(io.BytesIO(body)).size == (64, 64)
    elif check == "zip":
        assert all("/" not in member and "\\" not in member and ".." not in member for member in unzip(body)), name
    elif check == "json":
        json.loads(body)
    elif check and check.startswith("error"):
        assert list(json.loads(body)) == ["error"], name
        assert "Traceback" not in body.decode()
    if status not in (200, 400, 431):
        assert headers["x-content-type-options"] == "nosniff", name


@contextlib.contextmanager
def watching_files():
    """A list of the paths that this process opens for writing."""
    paths, is_on = [], True

    def hook(event, arguments):
        if is_on and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            _, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                paths.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)
    try:
        yield paths
    finally:
        is_on = False


@pytest.mark.slow
def test_two_hundred_clients_honest_and_hostile_get_the_answers_that_they_should(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 60.0)
    service = serve(queue=200, megabytes=1, uploads=200, patience=15).service
    content = make_image()

    async def clients(port):
        expected = (await exchange(port, post(port, content)))[2]
        kinds = [*requests(port, content).items()]
        chosen = [kinds[i % len(kinds)] for i in range(200)]
        random.Random(0).shuffle(chosen)
        gone = [asyncio.open_connection("127.0.0.1", port) for _ in range(10)]  # send a request, and wait for no answer
        for _, writer in await asyncio.gather(*gone):
            writer.write(post(port, content))
            await writer.drain()
            writer.close()
        answers = await asyncio.gather(*(exchange(port, *parts) for _, (parts, *_) in chosen))
        for (name, (_, statuses, check)), answer in zip(chosen, answers, strict=True):
            check_answer(name, answer, statuses, check, expected)

    with watching_files() as paths, running(service) as port:
        asyncio.run(asyncio.wait_for(clients(port), 500))
    assert paths
    folder = str(service.folder)
    assert [path for path in paths if not path.startswith(folder) and not path.startswith("/dev/")] == []
    assert not any(service.folder.iterdir()), "what a request needs is deleted with it"
    assert not any(tmp_path.iterdir())


# --- the command -------------------------------------------------------------------------------------------------


def read_document(process):
    """The JSON document that a command prints first."""
    text = ""
    while True:
        text += process.stdout.readline()
        with contextlib.suppress(ValueError):
            return json.loads(text)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_command_at_once_and_leaves_no_file(start, with_dropout, tmp_path, monkeypatch, number, code):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("-m", "p2pzoo", "serve", with_dropout, "--port", "0", "--device", "cpu", "--json")
    document = read_document(process)
    assert document["token"] is None
    with urllib.request.urlopen(f"{document['url']}health") as answer:
        assert json.load(answer) == {"status": "ok"}
    assert [path.name.startswith("p2pzoo-serve-") for path in tmp_path.iterdir()] == [True]
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "stopped\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--port", "99999"], "99999 is not in the range"), (["--host", "256.0.0.1"], "no such address"),
     (["--public-url", "zoo"], "is no address of a page"), (["--token-file", "none"], "No such file"),
     (["--tile", "64"], "tiles need test mode eval"), (["--precision", "bf16"], "needs test mode eval")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_before_serving(run_cli, with_dropout, options, message):
    result = run_cli("serve", with_dropout, "--port", "0", *options)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_without_the_extra_the_message_says_how_to_install_it(run_cli, with_dropout, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = run_cli("serve", with_dropout, "--port", "0")
    assert (result.exit_code, result.output) == (2, f"serve needs {package}: pip install 'p2pzoo[serve]'\n")


def test_other_hosts_get_a_token_and_a_chosen_one_is_not_printed(run_cli, with_dropout, monkeypatch):
    monkeypatch.setattr("p2pzoo_serve.commands._run", lambda service, access, listener: tokens.append(access.token))
    tokens = []
    document = json.loads(run_cli("serve", with_dropout, "--port", "0", "--host", "0.0.0.0", "--json").output)
    assert document["token"] == tokens[0]
    assert document["url"].endswith(f"/#token={tokens[0]}")
    assert len(tokens[0]) >= 32
    monkeypatch.setenv("P2PZOO_SERVE_TOKEN", "s" * 20)
    output = run_cli("serve", with_dropout, "--port", "0").output
    assert tokens[1] == "s" * 20
    assert tokens[1] not in output
    assert "#token= and your token" in output


def test_a_model_whose_translations_no_png_holds_is_refused(models, monkeypatch):
    from p2pzoo_serve.service import Service

    from p2pzoo.utils.errors import UserError

    folder, model = models["random"]
    monkeypatch.setattr(model, "output_format", ("float32", 3))
    with pytest.raises(UserError, match="gives 3 channels of float32, which no PNG can hold"):
        Service(folder, model, Limits())
