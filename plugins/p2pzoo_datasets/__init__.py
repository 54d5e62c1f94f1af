"""Your own pairs, and the paper's, read where they are. Light: registering imports neither numpy nor Pillow."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "folders",
        "p2pzoo_datasets.folders:Folders",
        summary="Your own pairs: two folders of images, matched by file name",
        paper="arXiv:1611.07004",
    )
    register(
        "side-by-side",
        "p2pzoo_datasets.folders:SideBySide",
        summary="Your own pairs, A|B in one image: the layout of the paper's archives",
        paper="arXiv:1611.07004",
    )
    register(
        "cityscapes",
        "p2pzoo_datasets.cityscapes:Cityscapes",
        summary="Street scenes and their semantic labels, 256 px: the data of the paper's Tables 1 to 3",
        paper="arXiv:1604.01685",
    )
