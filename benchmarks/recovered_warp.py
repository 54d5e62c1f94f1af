"""How well the deformation of [losses.registration] agrees with the warp that misaligned the training pairs.

    python benchmarks/recovered_warp.py runs/misaligned/registration/* -o benchmarks/results/recovered_warp.json

For runs on earth with dataset.warp: R is asked for the deformation between ŷ and the warped y of training pairs, and it
is compared with the known field. Numbers are in px, over all pixels of the pairs: the root mean square length of the
field (what an R that finds nothing has as its error), and of the difference. The runs may differ in seed, fold and warp
only, so that a line of the table has one setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
import torch
from grid import grid
from p2pzoo_losses.misalignment import Registration, load_registration

import p2pzoo
from p2pzoo import config


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", default=200, show_default=True, type=click.IntRange(1), help="Training pairs of each run.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write (JSON).")
def main(runs: tuple[Path, ...], pairs: int, output: Path | None) -> None:
    """Compare deformations with the known warps."""
    refuse_other_settings(runs)
    result = {"benchmark": "recovered_warp", "pairs": pairs, "runs": [compare(run, pairs) for run in runs]}
    measure.keep(result, output)
    click.echo(table(result))


def refuse_other_settings(runs: tuple[Path, ...]) -> None:
    """Raises ClickException for runs that differ in more than seed, fold and warp."""
    may_differ = ["seed=0", "dataset.fold=0", "dataset.warp=0"]
    try:
        ids = {run: config.load(str(run / "recipe.toml"), None, may_differ).id for run in runs}
    except p2pzoo.UserError as error:  # such as a dataset without `warp`
        raise click.ClickException(str(error)) from error
    if others := [run for run in runs if ids[run] != ids[runs[0]]]:
        raise click.ClickException(
            f"{others[0]}: differs from {runs[0]} in more than seed, fold and warp (p2pzoo diff shows in what): give "
            "the runs of one table"
        )


def compare(run: Path, pairs: int) -> dict[str, Any]:
    """{"run", "warp" of its recipe, "field", "error"} of a run."""
    experiment = config.load(str(run / "recipe.toml"))
    data = experiment.dataset.build(split="train")
    if not hasattr(data, "displacement"):
        raise click.ClickException(f"{run}: its dataset has no known warp: use earth with dataset.warp")
    registration, model = load_registration(run), p2pzoo.load(run)
    fields, errors = [], []
    for index in np.linspace(0, len(data) - 1, min(pairs, len(data))).astype(int).tolist():
        pair = data[index]
        known = data.displacement(index)
        fields.append(mean_square(known))
        errors.append(mean_square(ask(registration, model.translate(pair.x), pair.y) - known))
    return {
        "run": f"{run.parent.name}/{run.name}",
        "seed": experiment.seed,
        "warp": experiment.dataset.values.get("warp", 0.0),
        "field": float(np.mean(fields) ** 0.5),
        "error": float(np.mean(errors) ** 0.5),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: for each warp the mean over its runs, and the smallest and the largest."""
    by_warp: dict[float, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        by_warp.setdefault(run["warp"], []).append(run)

    def span(runs: list[dict[str, Any]], name: str) -> str:
        values = [run[name] for run in runs]
        return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = [
        [f"{warp:g} px", str(len(runs)), span(runs, "field"), span(runs, "error")]
        for warp, runs in sorted(by_warp.items())
    ]
    return grid(["warp", "runs", "known displacement, px", "error of R's, px"], lines)


def ask(registration: Registration, y_hat: np.ndarray, y: np.ndarray) -> np.ndarray:
    """R's displacement, (2, H, W), for images (H, W, 3) uint8."""
    tensors = [torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for image in (y_hat, y)]
    with torch.no_grad():
        return registration.displacement(*tensors)[0].numpy()


def mean_square(field: np.ndarray) -> float:
    """The mean square length of the vectors of a field (2, H, W)."""
    return float((field.astype(np.float64) ** 2).sum(0).mean())


if __name__ == "__main__":
    main()
