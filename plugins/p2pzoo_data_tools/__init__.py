"""Check, preview, convert and download datasets: `data`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "data", "p2pzoo_data_tools.commands:data_command", summary="Check, preview, convert and download datasets."
    )
