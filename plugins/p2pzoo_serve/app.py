"""The routes: a page, and what it asks for, which other programs may ask for too. Imports starlette.

GET /, /page.css, /page.js, /openapi.json, /health, /model; POST /translate, /batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import p2pzoo.runs.pages
from p2pzoo_serve.guard import Access, Guard
from p2pzoo_serve.interface import Answer, ClientGone, Options, Refusal
from p2pzoo_serve.uploads import receive_uploads
from p2pzoo_serve.worker import Stopped, Worker

if TYPE_CHECKING:
    from p2pzoo_serve.service import Service

FOLDER = Path(__file__).parent
SHARED_CSS = Path(p2pzoo.runs.pages.__file__).with_name("page.css")
CHUNK = 64 * 1024  # bytes of an answer that are in memory at a time


def make_app(service: Service, access: Access) -> Guard:
    """The ASGI application of a service."""
    endpoints = _Endpoints(service)
    texts = {
        "/": ("page.html", "text/html"),
        "/page.js": ("page.js", "text/javascript"),
        "/openapi.json": ("openapi.json", "application/json"),
    }
    routes = [Route(path, _static(FOLDER / name, media_type)) for path, (name, media_type) in texts.items()]
    routes += [
        Route("/page.css", _static(SHARED_CSS, "text/css", FOLDER / "page.css")),
        Route("/health", endpoints.health),
        Route("/model", endpoints.model),
        Route("/translate", endpoints.translate, methods=["POST"]),
        Route("/batch", endpoints.batch, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        Refusal: _answer_refusal,
        ClientGone: _answer_nobody,
        HTTPException: _answer_http_error,
        Exception: _answer_failure,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, access, service.limits)


class _Endpoints:
    """What is asked of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.uploads = 0  # bodies that are being received

    async def health(self, _: Request) -> Response:
        is_alive = self.service.worker.is_alive
        return JSONResponse({"status": "ok" if is_alive else "stopped"}, 200 if is_alive else 503)

    async def model(self, _: Request) -> Response:
        return JSONResponse(self.service.facts)

    async def translate(self, request: Request) -> Response:
        return await self._answer(request, 1, lambda uploads, options: self.service.translate_one(uploads[0], options))

    async def batch(self, request: Request) -> Response:
        return await self._answer(request, self.service.limits.files, self.service.translate_batch)

    async def _answer(self, request: Request, max_files: int, work: Callable[..., Answer]) -> Response:
        """Receive a body, run `work` on its files, and answer with the file that it returns."""
        service = self.service
        options = Options.parse(request.query_params.multi_items(), service.limits.samples)
        service.check_options(options)
        service.worker.check_free()
        folder = service.make_folder()
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            with self._receiving():
                uploads = await receive_uploads(request.receive, request.headers, folder, service.limits, max_files)
            answer = await _run(request, service.worker, lambda: work(uploads, options))
            response = FolderResponse(answer, folder)
            cleanup.pop_all()
        return response

    @contextlib.contextmanager
    def _receiving(self) -> Iterator[None]:
        """Raises Refusal if so many bodies arrive that their files could fill the disk."""
        if self.uploads >= self.service.limits.uploads:
            raise Refusal(503, "busy: too many uploads at once; try again in a few seconds", {"Retry-After": "5"})
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1


async def _run(request: Request, worker: Worker, work: Callable[[], Answer]) -> Answer:
    """The result of `work` in the worker. Raises Refusal, and ClientGone as soon as the client is gone."""
    job = worker.submit(work)
    result: asyncio.Future[Answer] = asyncio.wrap_future(job.future)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    waiting: set[asyncio.Future[Any]] = {result, gone}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_gone = gone.done()
        gone.cancel()
        if not result.done():
            worker.cancel(job)
    await asyncio.wait({result})  # a stopped job may still use its folder
    try:
        return result.result()
    except Stopped:
        if is_gone:
            raise ClientGone from None
        raise Refusal(503, "the server stops; ask again when it runs") from None


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class FolderResponse(Response):
    """Sends the file of an answer chunk by chunk, then deletes its folder, also where the client does not take it."""

    def __init__(self, answer: Answer, folder: Path) -> None:
        disposition = "inline" if answer.media_type == "image/png" else "attachment"
        headers = {
            "content-length": str(answer.path.stat().st_size),
            "content-disposition": f"{disposition}; filename*=UTF-8''{quote(answer.name)}",
        }
        if answer.skipped:
            headers["x-p2pzoo-skipped"] = str(answer.skipped)
        super().__init__(None, 200, headers, answer.media_type)
        self.file, self.folder = answer.path, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with self.file.open("rb") as file:
                while chunk := file.read(CHUNK):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _static(file: Path, media_type: str, *more: Path) -> Callable[[Request], Awaitable[Response]]:
    content = "\n".join(each.read_text("utf-8") for each in (file, *more))

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


async def _answer_nobody(request: Request, _: Exception) -> Response:
    return await _answer_refusal(request, Refusal(499, "the client is gone"))


async def _answer_refusal(_: Request, refusal: Any) -> Response:
    return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)


async def _answer_http_error(request: Request, error: Any) -> Response:
    messages = {
        404: f"no such page: {request.url.path!r:.80}; /openapi.json lists what there is",
        405: f"{request.method} is not for {request.url.path}; /openapi.json lists what is",
    }
    return JSONResponse({"error": messages.get(error.status_code, error.detail)}, error.status_code, error.headers)


async def _answer_failure(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its output says why"}, 500)


def read_openapi() -> Any:
    """The description of the routes, as GET /openapi.json answers it.

    >>> sorted(read_openapi()["paths"])
    ['/batch', '/health', '/model', '/openapi.json', '/translate']
    """
    return json.loads((FOLDER / "openapi.json").read_text("utf-8"))
