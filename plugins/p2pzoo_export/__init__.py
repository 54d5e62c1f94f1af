"""Convert weights of other code, export models, write model cards: `import`, `export`, `card`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "import", "p2pzoo_export.commands:import_command", summary="Convert weights that were trained by other code."
    )
    register(
        "export",
        "p2pzoo_export.commands:export_command",
        summary="Export a model as weights for other code, a graph, or a web page.",
    )
    register(
        "card",
        "p2pzoo_export.card_command:card_command",
        summary="Write a folder to share: model, card, pictures.",
    )
