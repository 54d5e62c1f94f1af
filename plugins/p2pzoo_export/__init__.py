"""Weights of other code, graphs for other runtimes, a web page, a model card: `import`, `export`, `card`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register("import", "p2pzoo_export.commands:import_command", summary="Convert weights that other code trained.")
    register(
        "export",
        "p2pzoo_export.commands:export_command",
        summary="Write a model for other code, as a graph, or as a web page.",
    )
    register(
        "card", "p2pzoo_export.card_command:card_command", summary="Write a folder to share: model, card, pictures."
    )
