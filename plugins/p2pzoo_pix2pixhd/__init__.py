"""The networks of pix2pixHD (Wang et al., CVPR 2018, arXiv:1711.11585).

Imports p2pzoo only: torch is loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register):
    register(
        "pix2pixhd-global",
        "p2pzoo_pix2pixhd.generators:GlobalGenerator",
        summary="G1 of pix2pixHD: four downsamplings, 9 residual blocks, four upsamplings",
        paper="arXiv:1711.11585, §3.2 and appendix",
    )
    register(
        "pix2pixhd-local",
        "p2pzoo_pix2pixhd.generators:LocalEnhancer",
        summary="G2 around a G1 at half the resolution; [init] generator can load a trained G1",
        paper="arXiv:1711.11585, §3.2 and appendix",
    )


@p2pzoo.hookimpl
def register_discriminators(register):
    register(
        "multiscale",
        "p2pzoo_pix2pixhd.discriminators:MultiscaleDiscriminator",
        summary="Identical PatchGANs on the image at full, half and quarter size",
        paper="arXiv:1711.11585, §3.2 and appendix",
    )
