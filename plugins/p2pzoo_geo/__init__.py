"""Pairs of rasters of any size, and whole scenes translated window by window. Registering imports no rasterio."""

from p2pzoo import hookimpl


@hookimpl
def register_datasets(register):
    register(
        "scenes",
        "p2pzoo_geo.scenes:Scenes",
        summary="Your own pairs of georeferenced rasters of any size, read window by window",
        paper="arXiv:1611.07004",
    )


@hookimpl
def register_metrics(register):
    register(
        "band-error",
        "p2pzoo_geo.metrics:BandError",
        summary="MAE, RMSE and bias of each band in its own units, over valid pixels",
        paper="none",
        needs=("labels",),
    )


@hookimpl
def register_commands(register):
    register(
        "translate-scene",
        "p2pzoo_geo.commands:translate_scene_command",
        summary="Translate a georeferenced scene of any size to a GeoTIFF.",
    )
