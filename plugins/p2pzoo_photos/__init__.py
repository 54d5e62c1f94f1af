"""Image pairs made from any folder of photos, and from the drawings of a package. Registering imports no torch."""

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
        summary="Your own photos: fill in the hidden centre, or random hidden blocks",
        paper="arXiv:1604.07379",
    )
    register(
        "edges",
        "p2pzoo_photos.edges:Edges",
        summary="Your own photos: edges to photo, with Canny's edges or your own edge files",
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
        summary="Your own photos: remove sensor noise and shot noise",
        paper="doi:10.1109/TIP.2008.2001399",
    )
    register(
        "openmoji",
        "p2pzoo_photos.openmoji:OpenMoji",
        summary="Emoji, outline to colour: 2,140 pairs from a package",
        paper="none",
    )
