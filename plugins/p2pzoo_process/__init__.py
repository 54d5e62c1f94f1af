"""Processes: bridge, flow matching and diffusion between paired images, as one Gaussian interpolant.

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_processes(register):
    register(
        "bridge",
        "p2pzoo_process.processes:Bridge",
        summary="A Brownian bridge from x to y",
        paper="arXiv:2205.07680, arXiv:2302.05872",
    )
    register(
        "flow",
        "p2pzoo_process.processes:Flow",
        summary="A flow from noise to y (flow matching)",
        paper="arXiv:2210.02747",
    )
    register(
        "diffusion",
        "p2pzoo_process.processes:Diffusion",
        summary="Diffusion from noise to y, with the cosine schedule",
        paper="arXiv:2111.05826, arXiv:2102.09672",
    )
