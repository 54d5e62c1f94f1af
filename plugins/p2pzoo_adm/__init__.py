"""The attention U-Net of Dhariwal & Nichol 2021 (arXiv:2105.05233), whose layers see the time of a process.

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "adm-unet",
        "p2pzoo_adm.unet:AttentionUNet",
        summary="A U-Net of residual blocks with self-attention, scaled and shifted by the time",
        paper="arXiv:2105.05233, §3",
    )
