"""The generator of SPADE (Park et al., CVPR 2019, arXiv:1903.07291).

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "spade",
        "p2pzoo_spade.generators:Spade",
        summary="For label maps, which scale and shift the normalised activations of each layer",
        paper="arXiv:1903.07291",
    )
