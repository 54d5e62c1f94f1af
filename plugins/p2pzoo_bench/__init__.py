"""Train and compare tables of recipes: `bench`, `compare`, `gallery`."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "bench", "p2pzoo_bench.commands:bench_command", summary="Train the recipes of a table and print the table."
    )
    register("compare", "p2pzoo_bench.commands:compare_command", summary="Compare finished runs.")
    register(
        "gallery",
        "p2pzoo_bench.gallery_command:gallery_command",
        summary="Write a page to browse all runs of a folder.",
    )
