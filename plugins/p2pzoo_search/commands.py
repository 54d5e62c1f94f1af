"""`p2pzoo search`. Imports click only: torch and Optuna are imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import (
    Duration,
    json_option,
    max_time_option,
    override_option,
    print_json,
    profile_option,
    recipe_argument,
    stop,
)
from p2pzoo.cli.tables import open_console
from p2pzoo.utils.errors import UserError

if TYPE_CHECKING:
    from p2pzoo_search.output import Outcome
    from p2pzoo_search.trials import Request


@click.command("search")
@recipe_argument("recipe")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True,
              help="Number of trials, those of earlier calls included.")  # fmt: skip
@click.option("--budget", type=Duration(), metavar="TIME",
              help="Share this time among the trials, such as 2h [default: each trial sees the recipe's images, or the "
                   "share of them that [search] names].")  # fmt: skip
@click.option("--metric", metavar="NAME", help="Search by this metric [default: that of [search]].")
@click.option("--seed", type=click.IntRange(min=0),
              help="Seed the sampler and all trials [default: the recipe's seed, else 0].")  # fmt: skip
@click.option("--study", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep the trials and the results in this folder [default: search/RECIPE].")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True,
              help="Train this many trials at a time: they share the cores and take the GPUs in turn.")  # fmt: skip
@click.option("--accept-stale", is_flag=True,
              help="Resume interrupted trials although the code changed since they began.")  # fmt: skip
@profile_option
@override_option
@max_time_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option
def search_command(
    recipe: str, trials: int, budget: float | None, metric: str | None, seed: int | None, study: Path | None, jobs: int,
    accept_stale: bool, profile: str | None, overrides: tuple[str, ...], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search good settings of RECIPE on its validation images.

    The table [search] of RECIPE names the settings and what they may be. Each trial trains as many images with other
    settings; the test images stay unseen. The same command resumes an interrupted search, and --trials continues a
    finished one. The best settings become best.toml, a recipe that extends RECIPE.

    \b
    [search]
    metric = "ssim"
    generator.width = [32, 64]
    losses.l1.weight = { low = 10, high = 200, log = true }
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo_search.space import read_space
    from p2pzoo_search.study import lock_study
    from p2pzoo_search.trials import Request

    space = read_space(recipe)
    metric = metric or space.metric
    if metric is None:
        raise UserError(f'{space.where()}  [search] names no metric: add metric = "l1", or give --metric')
    if budget is not None and space.share is not None:
        raise UserError(f"--budget: {space.where('share')} has share, the length of a trial; remove one of them")
    request = Request(recipe, profile, overrides, seed, space, registry())
    folder = study or Path("search") / Path(recipe.removeprefix("zoo:")).stem
    with lock_study(folder):
        outcome = _search(
            request, metric, folder, trials=trials, budget=budget, jobs=jobs, accept_stale=accept_stale, quiet=quiet
        )
    _print_outcome(outcome, as_json)


def _search(
    request: Request, metric: str, folder: Path, *, trials: int, budget: float | None, jobs: int, accept_stale: bool,
    quiet: bool,
) -> Outcome:  # fmt: skip
    """Train the missing trials of a study. Ends the command after a signal, or if the machine stopped a trial."""
    from p2pzoo_bench.executors import ACCEPT_STALE, LocalExecutor
    from p2pzoo_bench.progress import table_progress
    from p2pzoo_bench.run_missing import Stopped
    from p2pzoo_bench.table_file import inline

    from p2pzoo.runs.changed_data import DataFingerprints
    from p2pzoo_search.budget import count_images
    from p2pzoo_search.output import write_outcome
    from p2pzoo_search.study import SearchStudy, check_same_search, write_shared
    from p2pzoo_search.trials import Interrupted, Search, better_direction, check_request, describe_measurement

    experiment = check_request(request, metric)
    executor = LocalExecutor(jobs)
    better = better_direction(experiment, metric)
    shared = {"recipe": experiment.id, "search": request.space.describe(), "metric": metric, "seed": experiment.seed,
              "share": request.space.share, "data": DataFingerprints().of(experiment),
              "measurement": describe_measurement(experiment, metric)}  # fmt: skip
    known = check_same_search(folder, shared)
    with table_progress(quiet=quiet) as progress:
        if known:
            images = int(known["images"])
            progress.note(f"{folder}: goes on with {images:,} images for each trial")
        else:
            images = count_images(
                request, experiment, folder, budget=budget, trials=trials, jobs=jobs, threads=executor.threads,
                note=progress.note,
            )  # fmt: skip
            write_shared(folder, {**shared, "images": images})
        study = SearchStudy(folder, request.space, str(better), experiment.seed)
        own = _flatten(experiment.resolved())
        if refused := study.begin_with(own):
            found = ", ".join(f"{name} = {inline(own[name])}" if name in own else name for name in refused)
            progress.note(f"the recipe's own settings are no trial: [search] does not allow its {found}")
        search = Search(request, study, folder, metric, images, (ACCEPT_STALE,) if accept_stale else ())
        search.refuse_changed_code()
        try:
            search.continue_until(trials, executor, jobs, progress)
        except Stopped as stopped:
            stop("stopped; the same command resumes from there", 128 + stopped.signum, progress.note)
        except Interrupted as interrupted:
            stop(
                f"{interrupted}; mend this if it lies in the machine: the same command tries the trial again, and "
                "counts it as failed if it ends without a score a second time",
                1,
                progress.note,
            )
    for run, changed in search.find_stale().items():
        click.echo(f"{run}: the code changed after this run ({', '.join(changed)})", err=True)
    return write_outcome(search, folder)


def _flatten(tree: dict[str, object]) -> dict[str, object]:
    from p2pzoo.config.recipe import iter_leaves

    return {".".join(key): value for key, value in iter_leaves(tree)}


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print the table and the best settings. Raises UserError if no trial has a score."""
    if outcome.best is None:
        reasons = [*dict.fromkeys(outcome.search.failures.values())]
        raise UserError(
            f"no trial has a score: {reasons[0] if reasons else f'{outcome.page} lists them'}: fix the recipe, and "
            "give another --study"
        )
    if as_json:
        print_json(outcome.to_json())
        return
    open_console().print(outcome.to_rich(), markup=False)
    click.echo(f"best             trial {outcome.best.number + 1}: {outcome.search.metric} {outcome.best.score:.5g}")
    click.echo(f"written          {outcome.recipe}, {outcome.page}")
    click.echo(outcome.caution)
    click.echo(f"next             {outcome.command}")
