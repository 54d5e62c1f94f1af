"""Your own image pairs, and the paper's datasets. Registering them imports neither numpy nor Pillow."""

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
        "manifest",
        "p2pzoo_datasets.manifest:Manifest",
        summary="Your own pairs, in any folders, listed in a JSONL or CSV file",
        paper="arXiv:1611.07004",
    )
    register(
        "cityscapes",
        "p2pzoo_datasets.cityscapes:Cityscapes",
        summary="Street scenes and their semantic labels, 256 px: the data of the paper's Tables 1 to 3",
        paper="arXiv:1604.01685",
    )
    register(
        "facades",
        "p2pzoo_datasets.published:Facades",
        summary="Building facades and their labels, 256 px, from the paper's archive",
        paper="arXiv:1611.07004",
    )
    register(
        "maps",
        "p2pzoo_datasets.published:Maps",
        summary="Aerial photos and maps of New York, 600 px, from the paper's archive",
        paper="arXiv:1611.07004",
    )
    register(
        "edges2shoes",
        "p2pzoo_datasets.published:EdgesToShoes",
        summary="50,000 shoes and their edges, 256 px, from the paper's archive",
        paper="arXiv:1611.07004",
    )
    register(
        "edges2handbags",
        "p2pzoo_datasets.published:EdgesToHandbags",
        summary="139,000 handbags and their edges, 256 px, from the paper's archive",
        paper="arXiv:1611.07004",
    )
    register(
        "night2day",
        "p2pzoo_datasets.published:NightToDay",
        summary="Webcams by night and by day, 256 px, from the paper's archive",
        paper="arXiv:1611.07004",
    )
