"""`p2pzoo bench` and `p2pzoo compare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pzoo.cli.options import (
    Duration,
    FiniteRange,
    json_option,
    max_time_option,
    override_option,
    print_json,
    resume_command,
    stop,
)
from p2pzoo.utils.errors import UserError
from p2pzoo_bench.output import (
    CLAIM_FORMATS,
    FORMATS,
    check_curve_options,
    check_dry_run,
    resolve_format,
    write_document,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from p2pzoo_bench.bench import Bench
    from p2pzoo_bench.comparison import Comparison
    from p2pzoo_bench.executors import Executor
    from p2pzoo_bench.table_file import Row, Table


format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Print or write the table in this format [default: rich, or by the ending of OUT].",
)
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT",
    help="Write the table to this file: .md, .csv, .json, .tex or .html; .svg for a metric that draws (Figure 7).",
)  # fmt: skip
column_option = click.option(
    "--column", "columns", multiple=True, metavar="NAME",
    help="Show only this column: a metric, or a cost (receptive_field, receptive_field_over_side, parameters, "
         "discriminator_parameters, images, seconds, peak_megabytes, milliseconds). May be repeated.",
)  # fmt: skip
curve_option = click.option(
    "--curve", metavar="NAME",
    help="Show the learning curves of this metric instead: as it was after each number of images of evaluate.at.",
)  # fmt: skip
runs_option = click.option(
    "--runs", type=click.Path(path_type=Path, file_okay=False), default="runs", show_default=True,
    help="Folder of the runs.",
)  # fmt: skip


@click.command("bench")
@click.argument("table", metavar="TABLE")
@click.option(
    "--profile", metavar="NAME",
    help="Use this profile of the recipes: smoke, laptop, gpu or paper [default: the table's, else by hardware].",
)  # fmt: skip
@override_option
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds: 0, 1, … [default: the table's].")
@click.option("--on", "where", metavar="PLACE", default="local", show_default=True,
              help="Train runs on this place: local, ray (the cluster of RAY_ADDRESS, or of this machine), "
                   "or ray://HOST:10001.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1),
              help="Train this many runs at a time [default: 1; on a cluster as many as fit]. With local, they share "
                   "the cores and take the GPUs in turn.")  # fmt: skip
@click.option(
    "--cpus-per-run",
    type=click.IntRange(min=1),
    help="Threads of a run whose recipe sets none [default: all cores, shared; on a cluster 1].",
)
@click.option(
    "--gpus-per-run",
    type=FiniteRange(min=0),
    help="GPUs of a run on a cluster, such as 0.5 [default: 1 if the cluster has any].",
)
@runs_option
@click.option("--data", metavar="RECIPE",
              help="Train the rows on the data of this recipe, in folds if it has 30 pairs or more.")  # fmt: skip
@click.option("--budget", type=Duration(), metavar="TIME",
              help="With --data: train each row for this long, all folds together, such as 20m.")  # fmt: skip
@click.option("--methods", metavar="ROW,…", help="With --data: train only these rows of TABLE.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and train nothing.")
@click.option("--no-train", is_flag=True, help="Train nothing, and print the table of the runs that are finished.")
@click.option("--fresh", is_flag=True,
              help="Restart unfinished runs, and those whose data changed or that lack "
              "weights which a metric needs.")  # fmt: skip
@click.option("--accept-stale", is_flag=True, help="Use runs although the code or data changed since they started.")
@column_option
@curve_option
@format_option
@output_option
@max_time_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option
def bench_command(
    table: str, profile: str | None, overrides: tuple[str, ...], seeds: int | None, where: str,
    jobs: int | None, cpus_per_run: int | None, gpus_per_run: float | None, runs: Path, data: str | None,
    budget: float | None, methods: str | None, dry_run: bool, no_train: bool,
    fresh: bool, accept_stale: bool, columns: tuple[str, ...], curve: str | None, form: str | None,
    output: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train the missing runs of TABLE (a file, or zoo:NAME.toml) and print the table.

    TABLE may be a claims file, which says what a paper claims about rows of tables: then the runs of all its tables are
    trained, and a verdict on each claim is printed.

    Runs are found by their id, in the runs folder and in results/ beside the table file. The same command resumes an
    interrupted table. A run that fails does not stop the others; the exit code is then 1.

    \b
    p2pzoo bench zoo:methods.toml --data mine.toml --budget 20m -o methods.html
    """
    from p2pzoo import config
    from p2pzoo_bench.claims_file import is_claims_file
    from p2pzoo_bench.table_file import read_table

    if dry_run:
        check_dry_run(form, output)
    form = resolve_format(form, output, as_json)
    check_curve_options(curve, columns, form)
    executor = _build_executor(where, runs, jobs, cpus_per_run, gpus_per_run)
    flags = {"--fresh": fresh, "--accept-stale": accept_stale}
    options: dict[str, Any] = {
        "profile": profile, "overrides": overrides, "options": [flag for flag, on in flags.items() if on],
        "pick": lambda: config.pick_profile(overrides, executor.kind),
    }  # fmt: skip
    printed: dict[str, Any] = {"form": form, "output": output, "as_json": as_json}
    printed |= {"dry_run": dry_run, "train": not no_train, "quiet": quiet}
    own = {"--data": data, "--budget": budget, "--methods": methods}
    if is_claims_file(table):
        given = {"--seeds": seeds, "--column": columns, "--curve": curve, **own}
        if refused := [name for name, value in given.items() if value]:
            raise UserError(f"{refused[0]}: a claims file fixes the folds and the columns: change the file instead")
        failed = _bench_claims(table, runs, executor, options, **printed)
    else:
        table_file = read_table(table)
        if any(own.values()):
            table_file = _on_own_data(table_file, own, executor, runs, seeds, options, quiet=quiet)
        options["seeds"] = seeds
        failed = _bench_table(table_file, runs, executor, options, columns=columns, curve=curve, **printed)
    if failed:
        sys.exit(1)


def _bench_table(
    table: Table, runs: Path, executor: Executor, options: Mapping[str, Any], *, columns: Sequence[str],
    curve: str | None, form: str, output: Path | None, as_json: bool, dry_run: bool, train: bool, quiet: bool,
) -> dict[str, str]:  # fmt: skip
    """Train the missing runs of a table, and print it. Returns {id: why it failed}."""
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.bench import Bench
    from p2pzoo_bench.table_columns import find_columns, select_columns

    find_columns(columns, table.columns)  # before anything is trained
    bench = Bench(table, registry(), runs, **options)
    if table.search:
        trials = _make_trials(table, runs, options)
        _check_shown(bench, form, curve, will_train=train and bool(trials.missing()))
        if dry_run and trials.missing():
            _print_plans([trials], trials.table.title, as_json)
            return {}
        bench = Bench(_choose_settings(table, trials, executor, train=train, quiet=quiet), registry(), runs, **options)
    _check_shown(bench, form, curve, will_train=train and bool(bench.missing()))
    if dry_run:
        _print_plans([bench], bench.table.title, as_json)
        return {}
    failed = _train_missing(bench, executor, quiet=quiet) if train else {}
    _print_stale(bench)
    _write_table(
        select_columns(bench.compare(failed), columns, primary=bench.table.primary), form, output, as_json, curve=curve
    )
    return failed


def _check_shown(bench: Bench, form: str, curve: str | None, *, will_train: bool) -> None:
    """Raises UserError for what could not be shown after the training: a curve without numbers, svg without a figure.

    Finished runs may have a curve that the table does not name, of an earlier `-s evaluate.at`.
    """
    from p2pzoo_bench.learning_curves import check_curve

    if curve and will_train:
        check_curve(curve, [cell.experiment for cell in bench.cells])
    if form == "svg" and not curve:
        _check_one_drawing(bench.find_drawing_metrics())


def _make_trials(table: Table, runs: Path, options: Mapping[str, Any]) -> Bench:
    """The trials that choose the settings of a table's rows."""
    from p2pzoo import config
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.search import Trials, build_trials, check_search

    def count_images(row: Row) -> int:
        assert row.recipe
        overrides, profile = [*row.overrides, *options["overrides"]], options["profile"] or table.profile
        return config.load(row.recipe, profile, overrides, pick=options["pick"], registry=registry()).train.images_seen

    trials = Trials(build_trials(table, count_images), registry(), runs, **options)
    check_search(table, trials, options["overrides"])
    return trials


def _choose_settings(table: Table, trials: Bench, executor: Executor, *, train: bool, quiet: bool) -> Table:
    """The table with the settings that its trials choose, which are trained first."""
    from p2pzoo_bench.search import choose_settings

    failures = _train_missing(trials, executor, quiet=quiet) if train else {}
    _print_stale(trials)
    return choose_settings(table, trials, failures)


def _on_own_data(
    table: Table, own: Mapping[str, Any], executor: Executor, runs: Path, seeds: int | None, options: Mapping[str, Any],
    *, quiet: bool,
) -> Table:  # fmt: skip
    """The table on the data of --data, with rows of the length of --budget. Prints how long everything takes."""
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench.bench import Bench
    from p2pzoo_bench.executors import LocalExecutor
    from p2pzoo_bench.own_data import check_budget, on_own_data, with_budget

    if not own["--data"]:
        given = next(name for name, value in own.items() if value)
        raise UserError(f"{given} needs --data RECIPE, whose pairs the rows train on")
    if seeds is not None:
        raise UserError("--seeds: with --data the number of pairs decides how many folds there are; remove it")
    if own["--budget"]:
        check_budget(options["overrides"])
    note = (lambda _: None) if quiet else (lambda line: click.echo(line, err=True))
    methods = [name.strip() for name in (own["--methods"] or "").split(",") if name.strip()]
    prepared = on_own_data(table, own["--data"], options["profile"], methods, registry(), options["overrides"])
    for line in [*prepared.notes, prepared.describe(own["--data"])]:
        note(line)
    if not own["--budget"]:
        return prepared.table
    if not isinstance(executor, LocalExecutor):
        raise UserError("--budget: the speed of rows is measured on this machine; use --on local")
    return with_budget(
        prepared, own["--budget"], runs, lambda table: Bench(table, registry(), runs, **options),
        threads=executor.threads, jobs=executor.jobs, note=note,
    )  # fmt: skip


def _train_missing(bench: Bench, executor: Executor, *, quiet: bool) -> dict[str, str]:
    """Train the missing runs of a table. Returns {id: why it failed}. Ends the command after a signal."""
    from p2pzoo_bench.progress import table_progress
    from p2pzoo_bench.run_missing import Stopped

    failures: dict[str, str] = {}
    bench.refuse_changed_data()
    if missing := bench.missing():
        with table_progress(quiet=quiet) as progress:
            progress.note(
                f"{bench.table.title}: {len(missing)} of {len(bench.cells)} runs to train, profile {bench.profile}"
            )
            try:
                failures = bench.run_missing(progress, executor)
            except Stopped as stopped:
                again = resume_command("--fresh" in bench.options)
                stop(f"stopped; {again} resumes from there", 128 + stopped.signum, progress.note)
    if quiet:  # which printed no failure when it happened
        for cell in missing:
            if reason := failures.get(cell.experiment.id):
                click.echo(f"{bench.job(cell).name} failed: {reason}", err=True)
    return failures


def _print_stale(bench: Bench) -> None:
    for folder, changed in bench.stale().items():
        click.echo(f"{folder}: the code or data changed after this run ({', '.join(changed)})", err=True)


def _bench_claims(
    path: str, runs: Path, executor: Executor, options: Mapping[str, Any], *, form: str, output: Path | None,
    as_json: bool, dry_run: bool, train: bool, quiet: bool,
) -> dict[str, str]:  # fmt: skip
    """Train the missing runs of all tables of a claims file, and print the verdicts. Returns {id: why it failed}."""
    from p2pzoo.plugin.loader import registry
    from p2pzoo_bench import claims_formats
    from p2pzoo_bench.bench import Bench
    from p2pzoo_bench.claims import check_claims, judge
    from p2pzoo_bench.claims_file import read_claims
    from p2pzoo_bench.crossing_curves import check_curves

    if form not in CLAIM_FORMATS:
        raise UserError(f"{path}: verdicts have no format {form}: use one of {', '.join(CLAIM_FORMATS)}")
    claims = read_claims(path)
    benches = {name: Bench(table, registry(), runs, **options) for name, table in claims.tables.items()}
    check_claims(claims, benches)
    curves = Bench(claims.curves, registry(), runs, **options) if claims.curves else None
    if curves:
        check_curves(claims, benches, curves)
    if dry_run:
        _print_plans(list(benches.values()), claims.title, as_json)
        return {}
    failures: dict[str, str] = {}
    for bench in benches.values() if train else ():
        bench.refuse_changed_data()  # of any table, before the first one trains
    for bench in benches.values() if train else ():
        failures |= _train_missing(bench, executor, quiet=quiet)
    for bench in [*benches.values(), *([curves] if curves else [])]:
        _print_stale(bench)
    comparisons = {name: bench.compare(failures, targets=False) for name, bench in benches.items()}
    verdicts = [judged.describe() for judged in judge(claims, benches, comparisons, curves)]
    texts = {
        "markdown": lambda: claims_formats.to_markdown(claims.title, verdicts),
        "html": lambda: claims_formats.to_html(claims.title, claims.source, verdicts),
        "svg": lambda: claims_formats.to_svg(verdicts),
    }
    write_document(
        verdicts, form, output, as_json, format_text=lambda form: texts[form](),
        to_rich=lambda: claims_formats.to_rich(claims.title, verdicts),
    )  # fmt: skip
    return failures


def _print_plans(benches: Sequence[Bench], title: str, as_json: bool) -> None:
    """Print what the tables would train; a run that several share, once."""
    from p2pzoo.runs.progress import format_duration
    from p2pzoo_bench.plan import plan_runs, summarize_plan

    runs = list({(run.id, run.row): run for bench in benches for run in plan_runs(bench)}.values())
    summary = summarize_plan(runs)
    profiles = ", ".join(dict.fromkeys(bench.profile for bench in benches))
    if as_json:
        print_json({"table": ", ".join(bench.table.name for bench in benches), "profile": profiles, **summary})
        return
    for run in runs:
        click.echo(str(run))
    work = f": {summary['images']} images" if summary["images"] else ""
    time = f", about {format_duration(summary['seconds'])} one after the other" if summary["seconds"] else ""
    missing = summary["missing"]
    number = f"{missing} of {len({run.id for run in runs})} runs {'is' if missing == 1 else 'are'} missing"
    click.echo(f"{title}, profile {profiles}: {number}{work}{time}", err=True)


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--baseline", metavar="ROW", help="Compare the other rows with this one [default: the first].")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show only this metric. May be repeated.")
@column_option
@curve_option
@format_option
@output_option
@json_option
def compare_command(
    runs: tuple[Path, ...], baseline: str | None, metrics: tuple[str, ...], columns: tuple[str, ...],
    curve: str | None, form: str | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Compare finished runs. Runs that differ only by their seed make one row.

    Numbers that were measured under different protocols are refused, with the difference.
    """
    from p2pzoo.plugin.loader import registry
    from p2pzoo.runs.changed_data import DataFingerprints
    from p2pzoo_bench.comparison import compare_runs
    from p2pzoo_bench.stale_runs import SourceChanges, describe_stale
    from p2pzoo_bench.table_columns import select_columns

    form = resolve_format(form, output, as_json)
    check_curve_options(curve, columns, form)
    table = compare_runs(runs, registry(), baseline=baseline, wanted=metrics)
    changes = SourceChanges(DataFingerprints())
    if stale := describe_stale(table.rows, lambda row, folder: changes.find(row.experiment, folder)):
        table.doc["stale"] = stale
    _write_table(select_columns(table, columns), form, output, as_json, curve=curve)


def _build_executor(where: str, runs: Path, jobs: int | None, cpus: int | None, gpus: float | None) -> Executor:
    if where == "local":
        if gpus is not None:
            raise UserError("--gpus-per-run needs a cluster (--on ray); on this machine, --jobs runs share the GPUs")
        from p2pzoo_bench.executors import LocalExecutor

        return LocalExecutor(jobs or 1, cpus)
    if where != "ray" and not where.startswith("ray://"):
        raise UserError(f"--on {where}: no such place; use local, ray, or ray://HOST:10001")
    from p2pzoo_bench.cluster import Cluster

    return Cluster(where, runs, jobs=jobs, cpus=cpus, gpus=gpus)


def _write_table(table: Comparison, form: str, output: Path | None, as_json: bool, *, curve: str | None = None) -> None:
    from p2pzoo_bench import formats

    if curve:
        return _write_curve(table, curve, form, output, as_json)
    write_document(
        table.doc, form, output, as_json, format_text=lambda form: _format_table(table, form),
        to_rich=lambda: formats.to_rich(table.doc),
    )  # fmt: skip


def _write_curve(table: Comparison, column: str, form: str, output: Path | None, as_json: bool) -> None:
    from p2pzoo_bench import learning_curves

    doc = learning_curves.build_curve(table, column)
    texts = {
        "markdown": learning_curves.to_markdown, "csv": learning_curves.to_csv, "html": learning_curves.to_html,
        "svg": learning_curves.to_svg,
    }  # fmt: skip
    write_document(
        doc,
        form,
        output,
        as_json,
        format_text=lambda form: texts[form](doc),
        to_rich=lambda: learning_curves.to_rich(doc),
    )


def _format_table(table: Comparison, form: str) -> str:
    from p2pzoo_bench import formats
    from p2pzoo_bench.latex import to_latex

    if form == "html":
        return formats.to_html(table.doc, table.pictures, table.size, _draw_figures(table))
    if form == "svg":
        return _draw_svg(table)
    return {"markdown": formats.to_markdown, "csv": formats.to_csv, "latex": to_latex}[form](table.doc)


def _draw_figures(table: Comparison) -> dict[str, Figure]:
    """The figures of a table's page: those of its metrics, and the learning curves of its columns."""
    from p2pzoo_bench.learning_curves import build_curve, draw_curves, list_curves

    known = list_curves(table.rows)
    curves = [build_curve(table, column["metric"]) for column in table.doc["columns"] if column["metric"] in known]
    return table.draw_figures() | ({"Learning curves": draw_curves(curves)} if curves else {})


def _draw_svg(table: Comparison) -> str:
    """The figure of the only metric that draws. Raises UserError if none or several draw."""
    from p2pzoo.runs.pages import figure_to_svg_file

    figures = table.draw_figures()
    _check_one_drawing([*figures])
    return figure_to_svg_file(*figures.values())


def _check_one_drawing(metrics: Sequence[str]) -> None:
    if len(metrics) != 1:
        number = (
            f"{len(metrics)} of this table's metrics draw ({', '.join(metrics)})" if metrics else "none of them draws"
        )
        raise UserError(f"svg needs exactly one metric that draws a figure, but {number}; html shows everything")
