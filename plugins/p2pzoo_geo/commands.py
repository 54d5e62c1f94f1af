"""`p2pzoo translate-scene`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pzoo.cli.large_files import check_output, model_options, progress_bar, tile_options
from p2pzoo.cli.options import print_json, resume_command, stop
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.signals import exit_code
from p2pzoo.utils.terminal import escape

SUFFIXES = (".tif", ".tiff")


@click.command("translate-scene")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("scene", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.tif",
              help="Write this GeoTIFF.")  # fmt: skip
@tile_options("about 512")
@click.option("--nodata", type=float, metavar="VALUE",
              help="Value where the scene has no data [default: that of the training targets, else one outside of "
                   "their scale].")  # fmt: skip
@click.option("--cog", is_flag=True, help="Write a Cloud Optimized GeoTIFF, with overviews.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="bf16: faster on hardware that has it, and less exact.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Begin from the start, not where an interrupted translation stopped.")
@model_options
def translate_scene_command(
    model: Path,
    scene: Path,
    output: Path,
    tile: int | None,
    overlap: int | None,
    nodata: float | None,
    cog: bool,
    seed: int,
    at_use: Mapping[str, Mapping[str, Any]],
    weights: str | None,
    precision: str,
    fresh: bool,
    force: bool,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Translate SCENE, a georeferenced raster of any size, with MODEL: a run folder, a model.safetensors, zoo:NAME
    or hf:OWNER/NAME.

    The scene is translated in tiles that are blended, in eval mode, with bounded memory. OUT.tif has its CRS, transform
    and size, and the band names, units, dtype and nodata value of the training targets. Where the scene has no data,
    OUT.tif has none. Bands and scales are those of the dataset `scenes` that MODEL was trained on.

    Finished rows are kept in OUT.tif.parts. After an interruption the same command goes on there.
    """
    _check_files(scene, output, force)
    from p2pzoo.compute.engine import keep_freed_memory
    from p2pzoo.models.load import load_model
    from p2pzoo_geo.rasters import require_rasterio
    from p2pzoo_geo.translate import translate_scene

    require_rasterio("translate-scene")
    loaded = load_model(model, device=device, precision=precision, weights=weights, at_use=at_use)
    if loaded.device.type == "cpu":
        keep_freed_memory()
    settings = {kind: dict(table) for kind, table in at_use.items() if table}
    try:
        with progress_bar(quiet) as show:
            outcome = translate_scene(
                loaded, scene, output, tile=tile, overlap=overlap, seed=seed, nodata=nodata, cog=cog, fresh=fresh,
                settings={**settings, "weights": loaded.weights},
                progress=lambda stage, done, total: show(f"{stage} rows", done, total),
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        stop(f"stopped; {resume_command(fresh)} goes on after the rows that are finished", exit_code(interrupt))
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    if as_json:
        print_json({"file": str(output), "size": [*outcome.size], "resumed": outcome.resumed})
    else:
        click.echo(escape(str(output)))


def _check_files(scene: Path, output: Path, force: bool) -> None:
    """Raises UserError for names that cannot be read or written."""
    if not scene.is_file():
        raise UserError(f"{scene}: no such file")
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"{output}: a scene is written as GeoTIFF: give a name that ends with .tif")
    check_output(output, scene, "scene", force=force)
