"""Pairs of medical volumes, such as MR and CT, slice by slice. Registering imports no nibabel and no pydicom."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "volumes",
        "p2pzoo_medical.volumes:Volumes",
        summary="Your own pairs of volumes (NIfTI, DICOM series), slice by slice; patients are blocks",
        paper="arXiv:1611.07004",
    )


@hookimpl
def register_commands(register):
    register(
        "translate-volume",
        "p2pzoo_medical.commands:translate_volume_command",
        summary="Translate a NIfTI volume or a DICOM series.",
    )
