"""`p2pzoo serve`. Imports click only: torch and starlette are imported when the command runs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from p2pzoo.cli.options import FiniteRange, json_option, print_json, stop, weights_option
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code
from p2pzoo.utils.terminal import escape

if TYPE_CHECKING:
    import socket

    from p2pzoo.models.model import Model
    from p2pzoo_serve.guard import Access
    from p2pzoo_serve.service import Service

TOKEN_VARIABLE = "P2PZOO_SERVE_TOKEN"
MIN_TOKEN = 16  # characters: fewer can be guessed
STOP_SECONDS = 1.0  # in which the network ends after Ctrl-C: one layer of it


@click.command("serve")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Listen at this address. Any but one of this machine alone needs a token.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              help="Listen at this port; 0: a free one.")  # fmt: skip
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE",
              help=f"Demand the token in this file [default: that of the environment variable {TOKEN_VARIABLE}, else "
                   "a new one where --host or --public-url needs one].")  # fmt: skip
@click.option("--public-url", metavar="URL",
              help="The address at which a reverse proxy shows the page, such as https://zoo.example.org.")  # fmt: skip
@weights_option
@click.option("--test-mode", type=click.Choice(["paper", "eval"]),
              help="Run the generator as in training (paper: dropout, statistics of the image itself) or with neither "
                   "(eval) [default: the model's].")  # fmt: skip
@click.option("--tile", type=click.IntRange(min=1), metavar="SIDE",
              help="In eval mode: translate larger images in tiles of this side, in bounded memory.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="bf16, in eval mode: faster on hardware that has it; pixels differ by about one level.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
              help="Compute on this device.")  # fmt: skip
@click.option("--max-megabytes", type=FiniteRange(0.001, 10_000), default=20, show_default=True,
              help="Refuse larger uploads.")  # fmt: skip
@click.option("--max-megapixels", type=FiniteRange(0.001, 10_000), default=16, show_default=True,
              help="Refuse larger images, and batches and samples of more than four times as many pixels.")  # fmt: skip
@click.option("--samples", type=click.IntRange(2, 100), metavar="N", default=8, show_default=True,
              help="Allow up to N samples of an image, of a model that draws random numbers.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0, 1000), default=16, show_default=True,
              help="Let so many requests wait; further ones get the answer 503.")  # fmt: skip
@json_option
def serve_command(
    model: Path,
    host: str,
    port: int,
    token_file: Path | None,
    public_url: str | None,
    weights: str | None,
    test_mode: str | None,
    tile: int | None,
    precision: str,
    device: str,
    max_megabytes: float,
    max_megapixels: float,
    samples: int,
    queue: int,
    as_json: bool,
) -> None:
    """Serve MODEL as a web page and over HTTP: a run folder, a model.safetensors, zoo:NAME or
    hf:OWNER/NAME.

    The page translates an image that is chosen, dropped or pasted, and compares both. Results are those of
    `p2pzoo translate` with the same --weights, to the byte. Ctrl-C stops the server.

    By default only this machine reaches it. With any other --host, each request needs a token. It is in the address
    that is printed, after #, which browsers do not send. Nothing is encrypted: outside of a network that you trust, put
    a reverse proxy with TLS before it.

    \b
    p2pzoo serve runs/mine/RUN
    p2pzoo serve runs/mine/RUN --host 0.0.0.0 --max-megapixels 4
    curl --data-binary @photo.png -H "Content-Type: image/png" localhost:8000/translate -o translated.png
    """
    token = read_token(token_file)
    public_origin = parse_public_url(public_url)
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: pip install 'p2pzoo[serve]'") from None
    from p2pzoo_serve.interface import Limits
    from p2pzoo_serve.server import is_loopback, listen
    from p2pzoo_serve.service import Service

    limits = Limits(megabytes=max_megabytes, megapixels=max_megapixels, samples=samples)
    with listen(host, port) as listener:
        is_generated = token is None and (not is_loopback(listener) or public_url is not None)
        token = secrets.token_urlsafe(24) if is_generated else token
        access = make_access(listener, host, token, public_origin)
        loaded = load_served_model(model, device, precision, weights)
        with Service(model, loaded, limits, test_mode=test_mode, tile=tile, queue=queue) as service:
            url = public_url or _make_url(listener, host)
            _announce(service, url, token, is_generated, as_json)
            _run(service, access, listener)


def load_served_model(path: Path, device: str, precision: str, weights: str | None = None) -> Model:
    """The model that is served. weights: of a run; None: those that its numbers measured."""
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.models.load import load_model

    model = load_model(path, device=device, precision=precision, weights=weights)
    if model.device.type == "cpu":
        keep_freed_memory()
    return model


def read_token(file: Path | None) -> str | None:
    """The token of a file, else of the environment; None without both. Raises UserError, and never prints a token."""
    where = f"--token-file {file}" if file else TOKEN_VARIABLE
    if file:
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise UserError(f"{where}: {reason}: give a file that holds the token") from None
    elif (token := os.environ.get(TOKEN_VARIABLE, "")) == "":
        return None
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"{where}: a token has at least {MIN_TOKEN} ASCII characters and no blank: write a longer random one"
        )
    return token


def parse_public_url(url: str | None) -> str | None:
    """The origin of --public-url. Raises UserError.

    >>> parse_public_url("https://Zoo.example.org/p2pzoo/")
    'https://zoo.example.org'
    """
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        is_valid = False
    if not is_valid or "@" in parts.netloc:
        raise UserError(f"--public-url {url}: is no address of a page: write one such as https://zoo.example.org")
    return f"{parts.scheme}://{parts.netloc}".lower()


def make_access(listener: socket.socket, host: str, token: str | None, public_origin: str | None) -> Access:
    """Who may ask a server on this socket."""
    from p2pzoo_serve.guard import Access
    from p2pzoo_serve.server import is_loopback

    origins = frozenset({public_origin} if public_origin else ())
    if not is_loopback(listener):
        return Access(None, origins, token)
    port = listener.getsockname()[1]
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]".lower() if ":" in host else host.lower()}
    hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
    if public_origin:
        hosts.add(urlsplit(public_origin).netloc)
    return Access(frozenset(hosts), origins, token)


def _make_url(listener: socket.socket, host: str) -> str:
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/"


def _announce(service: Service, url: str, token: str | None, is_generated: bool, as_json: bool) -> None:
    """Print the address. A token that the user chose is not printed: the user has it."""
    address = f"{url}#token={token}" if is_generated else url
    if as_json:
        print_json({"url": address, "token": token if is_generated else None, "model": service.facts})
        return
    weights = ", the average of its weights" if service.model.weights == "average" else ""
    click.echo(f"{escape(service.facts['title'])}, run {service.facts['run']}{weights}")
    click.echo(f"serving  {address}")
    if token and not is_generated:
        click.echo("         with #token= and your token behind it; HTTP: Authorization: Bearer TOKEN")
    click.echo("stop     Ctrl-C")


def _run(service: Service, access: Access, listener: socket.socket) -> None:
    from p2pzoo_serve.app import make_app
    from p2pzoo_serve.server import Server

    interrupt: KeyboardInterrupt | None = None
    try:
        Server(make_app(service, access), service.worker).run([listener])
    except KeyboardInterrupt as error:
        interrupt = error
    service.worker.stop()
    code = exit_code(interrupt) if interrupt else 1
    if not service.worker.join(STOP_SECONDS):
        # the network is inside one long layer: a thread in torch would abort the process while Python ends
        service.close_folder()
        click.echo("stopped", err=True)
        os._exit(code)
    stop("stopped", code)
