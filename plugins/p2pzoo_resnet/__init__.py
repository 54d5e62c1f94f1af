"""The residual generators of Johnson et al. (ECCV 2016, arXiv:1603.08155), as in CycleGAN and its code.

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "resnet6",
        "p2pzoo_resnet.generators:ResNet6",
        summary="Two downsamplings, 6 residual blocks, two upsamplings",
        paper="arXiv:1603.08155; arXiv:1703.10593, §7.2",
    )
    register(
        "resnet9",
        "p2pzoo_resnet.generators:ResNet9",
        summary="Two downsamplings, 9 residual blocks, two upsamplings",
        paper="arXiv:1603.08155; arXiv:1703.10593, §7.2",
    )
