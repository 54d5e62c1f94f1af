"""The embedded real dataset: satellite photos and maps of the Earth, split by region. Registering imports no numpy."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "earth",
        "p2pzoo_earth.dataset:Earth",
        summary="NASA Blue Marble, land cover, terrain and map: aligned real pairs for eight tasks, split by region",
        paper="Stöckli et al. 2005; doi:10.5067/MODIS/MCD12C1.006",
    )


@hookimpl
def register_models(register):
    register(
        "earth-small",
        "p2pzoo_earth.models:earth_small",
        summary="Land cover to photos of the earth: a U-Net of 7 MB, for sides that 32 divides",
        paper="arXiv:1611.07004; zoo:modern/earth_small.toml",
    )
