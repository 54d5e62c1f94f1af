"""Search good settings of a recipe on its validation images: `search`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "search",
        "p2pzoo_search.commands:search_command",
        summary="Search good settings of a recipe on its validation images (p2pzoo[search]).",
    )
