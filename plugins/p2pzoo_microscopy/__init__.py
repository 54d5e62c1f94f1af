"""Pairs of TIFF stacks of microscopes, and stacks translated plane by plane. Registering imports no tifffile."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "stacks",
        "p2pzoo_microscopy.stacks:Stacks",
        summary="Your own pairs of microscope stacks (OME-TIFF, ImageJ, plain TIFF), read window by window",
        paper="arXiv:1611.07004",
    )


@hookimpl
def register_commands(register):
    register(
        "translate-stack",
        "p2pzoo_microscopy.commands:translate_stack_command",
        summary="Translate a microscope stack to an OME-TIFF.",
    )
