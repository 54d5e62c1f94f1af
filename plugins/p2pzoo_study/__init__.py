"""The paper's perceptual study (§4.1): the page that participants see, and the analysis of their answers."""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "study", "p2pzoo_study.commands:study_command", summary="Write a page that asks people which image is fake."
    )
    register("study-analyze", "p2pzoo_study.commands:study_analyze_command", summary="Analyse the answers of a study.")
