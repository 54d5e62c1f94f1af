"""Tasks made of any folder of photos, and of drawings that come as a package. Light: registering imports no torch."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "colorize",
        "p2pzoo_photos.colorize:Colorize",
        summary="Your own photos: lightness to colour (L to ab), or grey to RGB",
        paper="arXiv:1611.07004",
    )
    register(
        "inpaint",
        "p2pzoo_photos.inpaint:Inpaint",
        summary="Your own photos: what is hidden in the middle, or at random places, is filled in",
        paper="arXiv:1604.07379",
    )
    register(
        "edges",
        "p2pzoo_photos.edges:Edges",
        summary="Your own photos: edges to photo, by Canny or from files of your own",
        paper="arXiv:1611.07004",
    )
    register(
        "super-resolve",
        "p2pzoo_photos.restore:SuperResolve",
        summary="Your own photos: two, four or eight times the resolution",
        paper="arXiv:1501.00092",
    )
    register(
        "denoise",
        "p2pzoo_photos.restore:Denoise",
        summary="Your own photos: noise of sensor and light taken away",
        paper="doi:10.1109/TIP.2008.2001399",
    )
    register(
        "openmoji",
        "p2pzoo_photos.openmoji:OpenMoji",
        summary="Emoji, outline to colour: 2,140 pairs of a package",
        paper="none",
    )
