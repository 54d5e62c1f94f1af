"""A page and an HTTP endpoint for a trained model: `serve`.

Imports p2pzoo only: starlette and uvicorn, of the extra `serve`, are imported when the command runs.
"""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register("serve", "p2pzoo_serve.commands:serve_command", summary="Serve a trained model: a web page, and HTTP.")
