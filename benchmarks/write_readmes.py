"""Write the tables in the READMEs from the files in `results/`.

    python benchmarks/write_readmes.py            # rewrite them
    python benchmarks/write_readmes.py --check    # change nothing; exit 1 if a README differs

A table is between `<!-- table: NAME -->` and `<!-- end -->`. NAME is one of TABLES, or the name of `results/NAME.json`,
which `p2pzoo bench` wrote. A prefix shows something else of such a file: "groups-NAME" the groups of its rows,
"ranks-NAME" their order (rank_rows.py), "claims-NAME" and "verdicts-NAME" the judged claims in it, "curves-NAME" the
learning curves in `results/NAME-curve-METRIC.json`, with their picture.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from grid import grid

from p2pzoo import config
from p2pzoo.config.experiment import Component

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
PAGES = (HERE.parent / "README.md", HERE / "README.md")
PLACE = re.compile(r"(<!-- table: ([\w/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
STEPS = ("train_step-256-64-1", "train_step-256-64-4", "train_step-128-32-1")
PRECISIONS = ("fp32", "bf16")
BF16_ROWS = {"l1_cgan": "L1 + cGAN", "best": "best"}  # of bf16.toml
BF16_MARGINS = {"kid_efficientnet_lite0": 0.02, "lab_histogram": 0.02, "fcn_score": 0.05, "l1": 0.003}  # set before
SWITCHES = {
    "lowering": "convolutions as matrix products",
    "fused_adam": "Adam in one kernel",
    "keep_memory": "freed memory kept",
    "channels_last": "channels-last memory",
    "one_pass": "D's two judgements in one pass",
}


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a README differs.")
def main(check: bool) -> None:
    """Write the tables in the READMEs."""
    stale = []
    for page in PAGES:
        text = page.read_text("utf-8")
        written = rewritten(text)
        if written != text:
            stale.append(page.relative_to(HERE.parent))
            if not check:
                page.write_text(written, "utf-8")
    for picture, (documents, draw) in pictures().items():
        mark = f"<!-- {hashlib.sha256(json.dumps(documents).encode()).hexdigest()} -->\n"  # of what it shows
        if not picture.exists() or not picture.read_text("utf-8").endswith(mark):
            stale.append(picture.relative_to(HERE.parent))
            if not check:
                picture.write_text(f"{draw(documents)}\n{mark}", "utf-8")
    for name in stale:
        click.echo(f"{name}: {'differs from results/: run python benchmarks/write_readmes.py' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


def rewritten(page: str) -> str:
    """Return the page with every table rewritten from the results."""

    def written(place: re.Match[str]) -> str:
        name = place[2]
        prefix, _, file = name.partition("-")
        table = TABLES[name]() if name in TABLES else KINDS[prefix](file) if prefix in KINDS else compared(name)
        return f"{place[1]}\n{table}\n\n{place[3]}"

    return PLACE.sub(written, page)


def result(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return data


def times(spread: dict[str, Any]) -> str:
    """Format median, minimum and maximum over the rounds: 1.86× (1.80–1.93)."""
    low, high = spread["spread"]
    return f"{spread['median']:.2f}× ({low:.2f}–{high:.2f})"


def where(*results: dict[str, Any]) -> str:
    """Return the common environment of the results as text. Raises ValueError if they differ."""
    [same] = {json.dumps(each["environment"], sort_keys=True) for each in results}
    e = json.loads(same)
    of_rows = any(each.get("benchmark") == "row_seconds" for each in results)  # each row sets its own threads
    threads = "" if of_rows else f"{e['threads']} threads, "
    return (
        f"*{e['processor']}: {e['cores']} cores, {threads}{e['system']}; torch {e['torch']}, "
        f"Pillow {e['pillow']}, Python {e['python']}, p2pzoo {e['p2pzoo']}.*"
    )


def scale(step: dict[str, Any]) -> str:
    return f"{step['size']} px, width {step['width']}, batch {step['batch']}"


# --- the tables ------------------------------------------------------------------------------------------------


def pictures() -> dict[Path, tuple[list[dict[str, Any]], Callable[[list[dict[str, Any]]], str]]]:
    """Return {file of a picture: (the documents that it shows, what draws it)}."""
    from p2pzoo_bench.claims_formats import to_svg
    from p2pzoo_bench.learning_curves import draw_curves

    from p2pzoo.runs.pages import figure_to_svg_file

    def draw(docs: list[dict[str, Any]]) -> str:
        return figure_to_svg_file(draw_curves(docs))

    found: dict[Path, tuple[list[dict[str, Any]], Callable[[list[dict[str, Any]]], str]]] = {}
    for file in RESULTS.parent.glob("*claims.json"):
        if any(claim["parts"] for claim in judged_claims(file.stem)):
            found[file.with_suffix(".svg")] = judged_claims(file.stem), to_svg
    for name in {file.name.partition("-curve-")[0] for file in RESULTS.parent.glob("*-curve-*.json")}:
        found[RESULTS.parent / f"{name}-curves.svg"] = curves_of(name), draw
    return found


def curves_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.parent.glob(f"{name}-curve-*.json"))]


def curves(name: str) -> str:
    """The learning curves of a table: their picture, then a table for each number."""
    from p2pzoo_bench.learning_curves import to_markdown

    return "\n\n".join([f"![learning curves](results/{name}-curves.svg)", *map(to_markdown, curves_of(name))])


def verdicts(name: str = "claims") -> str:
    """The sentences about what replicated."""
    from p2pzoo_bench.claims_formats import summarize

    return "\n".join(f"- {sentence}" for sentence in summarize(judged_claims(name)))


def judged_claims(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS.parent / f"{name}.json").read_text("utf-8"))
    return found


def claims(name: str = "claims") -> str:
    """A row for each claim: the paper's effects, ours with their intervals, and the verdict; above it their picture."""
    from p2pzoo_bench.claims_formats import format_effect, format_reasons, format_verdict

    rows = []
    for claim in judged_claims(name):
        pairs = len({tuple(part["labels"]) for part in claim["parts"]})
        effects = [
            f"{' against '.join(part['labels']) + ', ' if pairs > 1 else ''}{part['heading']} {format_effect(part)}"
            for part in claim["parts"]
        ]
        paper = dict.fromkeys(f"{part['paper']:+.2f}" for part in claim["parts"] if part["paper"] is not None)
        margins = [f"{part['margin']:g}" for part in claim["parts"] if part["margin"]]
        rows.append([
            claim["id"], f"{claim['text']} ({claim['source']})" if claim["source"] else claim["text"],
            ", ".join(paper) or "–", "; ".join(effects) or "–", "; ".join(margins) or "–",
            ": ".join(filter(None, [format_verdict(claim), format_reasons(claim)])),
        ])  # fmt: skip
    table = grid(["", "claim", "paper", "here [95% interval over folds, unadjusted]", "δ", "verdict"], rows)
    has_effects = any(claim["parts"] for claim in judged_claims(name))
    return f"![effects of the claims, with intervals](results/{name}.svg)\n\n{table}" if has_effects else table


def train_step() -> str:
    steps = [result(f"{name}-{precision}") for precision in PRECISIONS for name in STEPS]
    rows = []
    for step in steps:
        took, peak, floor = step["milliseconds"], step["peak_megabytes"], step["floor"]["milliseconds"]
        rows.append(
            [
                f"{scale(step)}, {step['precision']}",
                *(f"{took[name]:.0f}" for name in ("reference", "baseline", "ours")),
                times(step["ratio_reference"]),
                times(step["ratio"]),
                f"{floor['arithmetic']:.0f} + {floor['memory']:.0f}",
                f"{step['share_of_floor']:.0%}",
                f"{peak['reference']}, {peak['ours']}",
            ]
        )
    head = [
        "a step of", "public code, ms", "baseline, ms", "p2pzoo, ms", "times as fast as the public code",
        "as the baseline", "floor: arithmetic + memory, ms", "floor / p2pzoo", "peak MB: public code, p2pzoo",
    ]  # fmt: skip
    rates = sorted({(step["precision"], step["product_gflop_per_second"]) for step in steps})
    measured = {precision: [rate for name, rate in rates if name == precision] for precision in PRECISIONS}
    lines = "; ".join(f"{precision} {min(each)} to {max(each)}" for precision, each in measured.items())
    return f"{grid(head, rows)}\n\nGFLOP/s of a matrix product: {lines}.\n\n{where(*steps)}"


def bf16_quality() -> str:
    """The differences of bf16 and fp32 with the 90% interval over seeds that must lie inside the margins."""
    from p2pzoo_bench.folds import over_folds

    doc = json.loads((RESULTS.parent / "bf16-laptop.json").read_text("utf-8"))
    cells = {row["name"]: row["cells"] for row in doc["rows"]}
    seeds = {row["name"]: [run["seed"] for run in row["runs"]] for row in doc["rows"]}
    rows = []
    for name, words in BF16_ROWS.items():
        assert seeds[name] == seeds[f"{name}_bf16"], "differences are paired by seed"
        for column in doc["columns"]:
            metric, margin = column["metric"], BF16_MARGINS[column["metric"]]
            pairs = zip(cells[f"{name}_bf16"][metric]["values"], cells[name][metric]["values"], strict=True)
            by_seed = [bf16 - fp32 for bf16, fp32 in pairs]
            interval = over_folds(by_seed, [1] * len(by_seed)).interval(0.9)
            assert interval.low is not None
            assert interval.high is not None
            inside = max(-interval.low, interval.high) < margin
            rows.append([
                words, column["heading"],
                *(f"{cells[row][metric]['mean']:.4f}" for row in (name, f"{name}_bf16")),
                f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]",
                f"{'inside' if inside else 'beyond'} ± {margin}",
            ])  # fmt: skip
    head = ["recipe", "number", "fp32", "bf16", "bf16 - fp32 [90% interval over seeds]", "margin"]
    return grid(head, rows)


def contributions() -> str:
    steps = [result(f"{name}-fp32") for name in STEPS]
    rows = [
        [f"{words} (`{switch}`)", *(times(step["contributions"][f"without {switch}"]) for step in steps)]
        for switch, words in SWITCHES.items()
    ]
    return grid(["without", *map(scale, steps)], rows)


def translate_folder() -> str:
    from translate_folder import table

    folder = result("translate_folder")
    return f"{table(folder)}\n\n{where(folder)}"


def data_loading() -> str:
    from data_loading import table

    data = result("data_loading")
    return f"{table(data)}\n\n{where(data)}"


def scaling() -> str:
    from scaling import SERIES

    data = result("scaling")
    rows = []
    for name in SERIES:
        series = data["series"][name]
        base = ", ".join(f"{key} {value:,}" for key, value in series["base"].items())
        first, last = series["values"][0], series["values"][-1]
        growth = series["slope"]
        rows.append(
            [
                f"{SERIES[name].unit}, {name} {first:,} to {last:,} ({base})",
                f"{series['milliseconds'][0]['median']:.1f} → {series['milliseconds'][-1]['median']:.1f}",
                f"{growth['milliseconds']['median']:.2f}",
                f"{last_slope(series):.2f}",
                f"{series['peak_megabytes'][0]} → {series['peak_megabytes'][-1]}",
                f"{series['start_seconds'][0]:.2f} → {series['start_seconds'][-1]:.2f}",
            ]
        )
    head = ["against", "ms a step", "slope", "slope of the last two", "peak MB over imports", "s to the first step"]
    return f"{grid(head, rows)}\n\n{where(data)}"


def last_slope(series: dict[str, Any]) -> float:
    """Return the exponent between the two largest points, where the fixed cost of a step no longer matters."""
    from scaling import slope

    return slope(series["counted"][-2:], [each["median"] for each in series["milliseconds"][-2:]])


def drift() -> str:
    from drift import table

    data = result("drift")
    return f"{table(data)}\n\n{where(data)}"


def startup() -> str:
    data = result("startup")
    seconds = data["seconds"]
    rows = [
        [words, f"{seconds[moment]['median']:.2f}", "–".join(f"{s:.2f}" for s in seconds[moment]["spread"])]
        for moment, words in (
            ("imports", "the imports alone"),
            ("begun", "the run's folder is there"),
            ("first_step", "the first step is done"),
        )
    ]
    # measured within one process; a file from before this measurement has no such rows
    after = data.get("after_imports", {})
    for moment, words in (
        ("first_step", "the first step, from the end of the imports on"),
        ("translation", "the first file of `p2pzoo translate`, from the end of the imports on"),
    ):
        if each := after.get(moment):
            rows.append([words, f"{each['median']:.2f}", "–".join(f"{s:.2f}" for s in each["spread"])])
    return f"{grid(['`p2pzoo run ' + data['recipe'] + '` until', 's', 'spread'], rows)}\n\n{where(data)}"


def coverage() -> str:
    from interval_coverage import table

    data: dict[str, Any] = json.loads((RESULTS.parent / "coverage.json").read_text("utf-8"))
    return table(data)


def faults() -> str:
    from faults import table

    return campaign("faults", table)


def bad_input() -> str:
    from bad_input import table

    return campaign("bad_input", table)


def campaigns() -> str:
    """Return one line for each campaign."""
    summaries: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "faults": lambda data: [
            f"faults of {len(data['faults'])} kinds", f"{data['tried']:,}",
            f"{data['survived']:,} went as promised; bytes lost: {data['bytes_lost'] or 'none'}",
        ],
        "bad_input": lambda data: [
            f"bad input of {len(data['inputs'])} kinds", f"{data['tried']:,}",
            f"{data['refused']:,} refused in a line, {data['taken']:,} taken; tracebacks and hangs: "
            f"{data['failed'] or 'none'}",
        ],
    }  # fmt: skip
    files = {name: RESULTS.parent / f"{name}.json" for name in summaries}
    results = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    if not results:
        return "*Not run at length yet.*"
    rows = [summaries[name](data) for name, data in results.items()]
    places = dict.fromkeys(map(environments, results.values()))
    return "\n\n".join([grid(["", "tried", "what came of it"], rows), *places])


def campaign(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    file = RESULTS.parent / f"{name}.json"
    if not file.exists():
        return "*Not run at length yet.*"
    data = json.loads(file.read_text("utf-8"))
    return f"{table(data)}\n\n{environments(data)}"


def environments(data: dict[str, Any]) -> str:
    """Return the environments of a campaign, which may have gone on in another one, as text."""
    return "\n\n".join(where({"environment": each}) for each in data["environments"])


def row_seconds() -> str:
    """The cost of the rows of each table of the paper on trial."""
    from row_seconds import as_table

    names = ("table1_losses", "table2_generators", "table3_receptive_field", "table6_photo_to_labels")
    measured = [result(f"row_seconds-{name}") for name in names]
    return "\n\n".join([*(f"{each['table']}\n\n{as_table(each)}" for each in measured), where(measured[0])])


def equal_time() -> str:
    timed = result("row_seconds-best")
    rows = []
    for row in timed["rows"].values():
        each, images = row["milliseconds"], row["images"]
        factor = images / timed["rows"][timed["baseline"]]["images"]
        spent = {"median": factor * row["times"]["median"], "spread": [factor * end for end in row["times"]["spread"]]}
        rows.append([
            row["label"], f"{each['median']:.1f} ms ({each['spread'][0]:.1f}–{each['spread'][1]:.1f})",
            times(row["times"]), f"{images:,}", times(spent),
        ])  # fmt: skip
    head = ["recipe", "an image", "of the baseline's", "images", "all of them, of the baseline's time"]
    return f"{grid(head, rows)}\n\n{where(timed)}"


def components() -> str:
    """Every recipe of zoo_equal_time.toml: its new components, cost of its networks at full size, time of a step."""
    from p2pzoo_bench.table_file import read_table

    from p2pzoo.models.build import summarize_network

    timed = result("row_seconds-zoo_equal_time")
    rows = {row.name: row for row in read_table(str(HERE / timed["table"])).trained}
    made = {name: config.load(row.recipe, "gpu", row.overrides) for name, row in rows.items() if row.recipe}
    base = made[timed["baseline"]]
    common = {component.entry.full_name for component in base.components()}
    costs: dict[str, str] = {}  # most recipes share a network with another one

    def cost_of(network: Component | None) -> str:
        if network is None:
            return "–"
        key = json.dumps(network.identity(), sort_keys=True)
        if key not in costs:
            summary = summarize_network(network, (3, 3), (256, 256))
            costs[key] = f"{summary.parameters / 1e6:.2f}, {summary.macs / 1e9:.2f}"
        return costs[key]

    lines = []
    for name, experiment in made.items():
        networks = [experiment.generator, experiment.discriminator]
        entries = [component.entry for component in experiment.components()]
        entries = [entry for entry in entries if entry.full_name not in common]
        options = [key for key in experiment.recipe.values["train"] if key not in base.recipe.values["train"]]
        if experiment is base:
            entries = [network.entry for network in networks if network]
        recipe, time = str(rows[name].recipe).removeprefix("zoo:"), timed["rows"][name]
        lines.append([
            f"[{Path(recipe).stem}](../recipes/{recipe})",
            ", ".join(f"`{new}`" for new in (*(entry.name for entry in entries), *options)) or "other settings",
            "; ".join(dict.fromkeys(entry.paper for entry in entries)), *map(cost_of, networks),
            f"{time['milliseconds']['median']:.0f}", times(time["times"]),
        ])  # fmt: skip
    head = ["recipe", "what it brings", "source", "G: parameters/10⁶, multiply-adds/10⁹", "D", "ms a step", "of base's"]
    return f"{grid(head, lines)}\n\n{where(timed)}"


def document(name: str) -> dict[str, Any]:
    """The document of a table of runs, as `p2pzoo bench -o results/NAME.json` wrote it."""
    doc: dict[str, Any] = json.loads((RESULTS.parent / f"{name}.json").read_text("utf-8"))
    return doc


def compared(name: str) -> str:
    from p2pzoo_bench.formats import to_markdown

    return to_markdown(document(name))


def groups(name: str) -> str:
    """Which rows differ from the baseline beyond chance, and which do not."""
    from p2pzoo_bench.row_groups import build_groups_table, describe_groups

    doc = document(name)
    return f"{grid(*build_groups_table(doc))}\n\n{describe_groups(doc)}"


def ranks(name: str) -> str:
    from rank_rows import as_table

    return as_table(document(name))


def uncertainty() -> str:
    from uncertainty import table

    return table(document("uncertainty"))


def recovered_warp() -> str:
    from recovered_warp import table

    return table(document("recovered_warp"))


def plan() -> str:
    from plan import ablation, colorization

    return f"{colorization()}\n\n{ablation()}"


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        train_step, bf16_quality, contributions, translate_folder, data_loading, scaling, drift, startup, coverage,
        row_seconds, equal_time, components, plan, faults, bad_input, campaigns, claims, verdicts, uncertainty,
        recovered_warp,
    )
}  # fmt: skip
KINDS: dict[str, Callable[[str], str]] = {table.__name__: table for table in (claims, curves, groups, ranks, verdicts)}


if __name__ == "__main__":
    main()
