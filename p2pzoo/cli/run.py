"""`p2pzoo run`: train, evaluate and print the results."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pzoo.cli.options import (
    json_option,
    max_time_option,
    override_option,
    print_json,
    profile_option,
    recipe_argument,
    refuse_given_twice,
    resume_command,
    stop,
    with_parent_option,
)
from p2pzoo.cli.tables import exit_if_nan, print_metrics
from p2pzoo.utils.launcher import is_follower, is_launched

if TYPE_CHECKING:
    from p2pzoo.training.run_experiment import Outcome


@click.command("run")
@recipe_argument("recipe")
@profile_option
@override_option
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed all random numbers [default: the recipe's seed, else 0]."
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    show_default=True,
    help="Write run folders into this folder.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Compute on this device [default: auto]."
)
@click.option("--fresh", is_flag=True, help="Start over and delete what this run has saved.")
@click.option("--accept-stale", is_flag=True, help="Resume even if code has changed since the run began.")
@click.option(
    "--continue-from",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Train longer: start from the end of this complete run.",
)
@max_time_option
@with_parent_option
@click.option("--quiet", is_flag=True, help="Only print errors and results.")
@json_option
def run_command(
    recipe: str,
    profile: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    runs: Path,
    device: str | None,
    fresh: bool,
    accept_stale: bool,
    continue_from: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train RECIPE (a file, or zoo:NAME.toml), evaluate it, and keep the results in a run folder.

    The same command again resumes an interrupted run, and prints the results of a complete one. On Ctrl-C, SIGTERM,
    --max-time and when the terminal is closed, the command saves a checkpoint and exits with code 130, 143 or 129.
    """
    if is_launched():  # before torch is imported: each process would print warnings of sockets and unused parameters
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from p2pzoo import config
    from p2pzoo.compute.distributed import on_rank0, process_group, sync_errors
    from p2pzoo.plugin.loader import registry
    from p2pzoo.runs.progress import make_progress
    from p2pzoo.runs.run_folder import find_run
    from p2pzoo.training.loop import Interrupted
    from p2pzoo.training.run_experiment import run_experiment

    refuse_given_twice(overrides, {"--seed": ("seed", seed), "--device": ("compute.device", device)})
    overrides += (f"seed={seed}",) if seed is not None else ()
    overrides += (f"compute.device={device}",) if device else ()
    with process_group():
        continued = on_rank0(find_run, continue_from) if continue_from else None
        continued_from = on_rank0(lambda: str(continued.status["id"])) if continued else None
        with sync_errors():
            experiment = config.load(recipe, profile, overrides, continued_from=continued_from)
        settings = experiment.train
        with make_progress(settings.images_seen, settings.step_images, quiet=quiet or is_follower()) as progress:
            progress.note(f"{experiment.recipe.name}, profile {experiment.recipe.profile}, seed {experiment.seed}")
            try:
                outcome = run_experiment(
                    experiment, registry(), runs, progress,
                    fresh=fresh, accept_stale=accept_stale, continued=continued,
                )  # fmt: skip
            except Interrupted as stopped:
                message = f"stopped at {stopped.images} images and saved; {resume_command(fresh)} resumes from there"
                stop(message, 128 + stopped.signum, progress.note)

    if is_follower():
        return
    if not outcome.trained:
        progress.note(f"already complete: {outcome.run.folder}")
    if outcome.stale:
        changed = ", ".join(outcome.stale)
        progress.note(f"the code or data changed after this run ({changed}): --fresh trains it again")
    next_command = getattr(experiment.dataset.factory, "next_command", "translate RUN IMAGE -o translated/")
    _print_results(outcome, next_command, as_json)


def _print_results(outcome: Outcome, next_command: str, as_json: bool) -> None:
    """Exits with code 1 if a metric is nan."""
    try:
        if as_json:
            print_json({"folder": str(outcome.run.folder), **outcome.results})
        else:
            _print_table(outcome, next_command)
    except BrokenPipeError:
        click.echo("standard output was closed before all results were printed; the same command prints them", err=True)
        raise
    exit_if_nan(outcome.results)


def _print_table(outcome: Outcome, next_command: str) -> None:
    print_metrics(outcome.results)
    click.echo(f"pictures         {outcome.run.samples}")
    for title, file in (("report", outcome.run.folder / "report.html"), ("model", outcome.run.model)):
        click.echo(f"{title:<16} {file if file.exists() else 'deleted since; --fresh trains this run again'}")
    if outcome.run.model.exists():
        click.echo(f"next             p2pzoo {next_command.replace('RUN', shlex.quote(str(outcome.run.folder)), 1)}")
