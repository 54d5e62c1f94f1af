"""The paper's own datasets, read where the user has put them. Light: registering imports neither numpy nor Pillow."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "cityscapes",
        "p2pzoo_datasets.cityscapes:Cityscapes",
        summary="Street scenes and their semantic labels, 256 px: the data of the paper's Tables 1 to 3",
        paper="arXiv:1604.01685",
    )
