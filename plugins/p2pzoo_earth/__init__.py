"""The embedded real dataset: the Earth from above, split by region. Light: registering imports no numpy."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "earth",
        "p2pzoo_earth.dataset:Earth",
        summary="NASA Blue Marble, land cover, terrain and map: aligned real pairs for eight tasks, split by region",
        paper="Stöckli et al. 2005; doi:10.5067/MODIS/MCD12C1.006",
    )
