"""summary.md of a window, from its JSON files, and what is kept in its folder."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grid import grid

from p2pzoo.utils.files import write_text
from window.context import read_record
from window.plan import STAGES

MAX_BYTES = 60_000_000  # of the folder
MAX_LOG_BYTES = 200_000  # of a log: its end is kept
MAX_KERNELS = 12
PRINTED = ("fcn_score", "fcn_score.class_iou", "l1", "sharpness", "lab_histogram.a", "lab_histogram.b")

Results = Mapping[str, Any]


def pack(out: Path, log: Callable[[str], None]) -> None:
    """Write summary.md, and make the folder small enough to be copied."""
    for file in (out / "logs").glob("*.log"):
        content = file.read_bytes()
        if len(content) > MAX_LOG_BYTES:
            file.write_bytes(b"[the beginning is left out]\n" + content[-MAX_LOG_BYTES:])
    write_text(out / "summary.md", text(out) + "\n")
    files = sorted((file for file in out.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    while files and sum(file.stat().st_size for file in files) > MAX_BYTES:
        largest = files.pop()
        log(f"{largest.relative_to(out)} is deleted: the folder would have more than {MAX_BYTES / 1e6:.0f} MB")
        largest.unlink()


def text(out: Path) -> str:
    """The summary in Markdown. Stages that did not run, or have no results, are left out."""
    records = {stage.name: read_record(out / f"{stage.name}.json") for stage in STAGES}
    parts = [title(records["inventory"]), table_of_stages(records), failed_checks(records)]
    for heading, section, names in SECTIONS:
        found = {name: records[name]["results"] for name in names if records[name].get("results")}
        try:
            lines = [section(name, results) for name, results in found.items()]
        except (KeyError, IndexError, TypeError, ValueError) as error:  # of a stage that ended early
            lines = [f"The results are incomplete ({type(error).__name__}: {error})."]
        if lines:
            parts.append("\n\n".join([f"## {heading}", *filter(None, lines)]))
    return "\n\n".join(filter(None, parts))


def title(inventory: Mapping[str, Any]) -> str:
    results = inventory.get("results", {})
    device, versions, rates = (results.get(name, {}) for name in ("device", "versions", "rates"))
    lines = ["# A window on a GPU", f"{device.get('name', 'no device')}, torch {device.get('torch')}, CUDA "
             f"{versions.get('cuda')}, cuDNN {versions.get('cudnn')}"]  # fmt: skip
    lines += [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rates.items())] if rates else []
    if inventory.get("rehearsal"):
        lines.append("**A rehearsal at toy size: its numbers mean nothing.**")
    if not device.get("computes", True):
        lines.append("**This device runs no kernel: no numbers are compared.**")
    return "\n\n".join(lines)


def table_of_stages(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for stage in STAGES:
        record = records[stage.name]
        checks = record.get("checks", [])
        done = [check["passed"] for check in checks if check["passed"] is not None]
        counted = f"{sum(done)} of {len(done)}" if done else "–"
        seconds = f"{record['seconds']:.0f}" if "seconds" in record else "–"
        budget = f"{stage.seconds:.0f}" if stage.seconds else "rest"
        rows.append([stage.name, record.get("status", "not run"), seconds, budget, counted, stage.title])
    return grid(["stage", "status", "s", "budget, s", "checks passed", "what it finds out"], rows)


def failed_checks(records: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, record in records.items():
        for check in record.get("checks", []):
            if check["passed"] is False:
                figures = {key: value for key, value in check.items() if key not in ("check", "passed")}
                lines.append(f"- {name}: **{check['check']}**: {figures}")
    return "\n".join(["## Checks that failed", "", *lines]) if lines else ""


# --- sections --------------------------------------------------------------------------------------------------


def combinations(_: str, results: Results) -> str:
    rows = []
    for name, found in results["combinations"].items():
        exact, short = found.get("fp32", {}), found.get("bf16", {})
        reason = found.get("cpu") or exact.get("error") or short.get("error") or ""
        relative = [value for value in exact.get("relative", {}).values() if isinstance(value, float)]
        cosines = [value for value in short.get("cosine", {}).values() if isinstance(value, float)]
        rows.append([name, f"{max(relative):.1e}" if relative else "–", f"{exact['loss']:.1e}" if relative else "–",
                     f"{min(cosines):.4f}" if cosines else "–", reason])  # fmt: skip
    head = ["combination", "Adam's state, fp32 against the CPU", "losses", "cosine of the gradients in bf16", "error"]
    return grid(head, rows)


def graphs(_: str, results: Results) -> str:
    rows = []
    for name, found in results.items():
        cells = [describe(found.get(key)) for key in ("graph against eager", "eager against eager again")]
        rows.append([name, "yes" if "cuda_graphs" in found["graph"]["on"] else "no", *cells])
    return grid(["steps", "recorded", "graph and eager", "eager and eager again"], rows)


def describe(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    if not found["different"]:
        return "equal to the bit"
    return f"{found['different']} of {found['tensors']} tensors differ, by {found['largest']:.1e} at most"


def captures(_: str, results: Results) -> str:
    rows = [[name, describe(found["against eager"]), "; ".join(found["warnings"])] for name, found in results.items()]
    return grid(["", "against an eager run", "warnings"], rows)


def resume(_: str, results: Results) -> str:
    rows = [
        [name, found["precision"], str(found["images"]), "equal" if len({*found["models"]}) == 1 else "different"]
        for name, found in results.items()
    ]
    return grid(["variant", "precision", "stopped after images", "bytes of the models"], rows)


def speed(_: str, results: Results) -> str:
    cell, rows = results["cell"], []
    for who, found in results["contestants"].items():
        ratio = found.get("times_as_long", {})
        low, high = ratio.get("spread", ("", ""))
        shares = found.get("share_of_time_waiting_for", {})
        rows.append([
            who, f"{found['milliseconds']:.3f}", f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})" if ratio else "",
            str(found["peak_megabytes"]), str(found["waits"]),
            ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
        ])  # fmt: skip
    rows += [[who, "–", "", "", "", reason] for who, reason in results["left_out"].items()]
    head = ["", "ms a step", "times as long as p2pzoo (spread)", "peak MB", "waits a step", "time waiting for"]
    flop = results["contestants"].get("classic", {}).get("flop", 0)
    ours = results["contestants"].get("p2pzoo", {}).get("milliseconds")
    reached = f"{flop / ours / 1e9:.2f} TFLOP/s" if ours and flop else ""
    title = f"**{cell['size']} px, width {cell['width']}, batch {cell['batch']}**"
    return "\n\n".join(filter(None, [title, grid(head, rows), f"p2pzoo computes {reached}." if reached else ""]))


def kernels(_: str, results: Results) -> str:
    parts = []
    for name, found in results.items():
        if name == "replay":
            parts.append(
                f"A replay takes {found['milliseconds_on_the_device']} ms on the device and "
                f"{found['milliseconds_in_python']} ms in Python."
            )
        elif "table" in found:
            rows = [[f"`{row['kernel'][:70]}`", str(row["calls"]), str(row["microseconds"])]
                    for row in found["table"][:MAX_KERNELS]]  # fmt: skip
            total = f"**{name}**: {found['calls']} calls, {found['microseconds'] / 1e3:.3f} ms a step"
            parts += [total, grid(["kernel", "calls", "µs"], rows)]
        else:
            parts.append(f"**{name}**: {found['error']}")
    return "\n\n".join(parts)


def training(_: str, results: Results) -> str:
    together = [rate["images_per_second"] for rate in results["rates"]["together"] if "error" not in rate]
    alone = results["rates"]["alone"].get("images_per_second", 0)
    lines = [f"One process alone: {alone:.1f} images/s. {len(together)} at once: {sum(together):.1f} images/s "
             f"together. Each run has {results['images']} images."]  # fmt: skip
    by_row: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for run in results.get("runs", {}).values():
        for milestone in run["milestones"]:
            for weights, values in milestone["metrics"].items():
                by_row.setdefault((run["row"], milestone["images"], weights), []).append(values)
    printed = [name for name in PRINTED if any(name in each[0] for each in by_row.values())]
    rows = [
        [row, str(images), weights, str(len(values)), *(spread([each[name] for each in values]) for name in printed)]
        for (row, images, weights), values in sorted(by_row.items())
    ]
    unfinished = [f"- {name}: {run['status']}" for name, run in results.get("runs", {}).items()
                  if run["status"] != "complete"]  # fmt: skip
    table = grid(["row", "images", "weights", "seeds", *printed], rows)
    return "\n\n".join(filter(None, [*lines, table, "\n".join(unfinished)]))


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


CELLS = tuple(stage.name for stage in STAGES if stage.module == "speed")
SECTIONS: tuple[tuple[str, Callable[[str, Results], str], tuple[str, ...]], ...] = (
    ("Combinations", combinations, ("combinations",)),
    ("With and without a CUDA graph", graphs, ("graphs",)),
    ("A recording that fails", captures, ("captures",)),
    ("Stopped and resumed", resume, ("resume",)),
    ("Speed", speed, CELLS),
    ("Kernels", kernels, ("kernels",)),
    ("Training runs", training, ("training",)),
)
