"""Pairs from files to batches: p2pzoo's path against the classic one, on the same JPEG pairs in one run.

    python benchmarks/data_loading.py -o benchmarks/results/speed/data_loading.json

Classic: each pair opened by Pillow whenever its turn comes, split, enlarged to 286 px (bicubic), cropped, flipped,
made float and scaled (see baseline.py); in the process itself, and by a DataLoader with two workers that stay alive.
p2pzoo: the batches of `p2pzoo run`, made one after the other with nothing in between: the first epoch from the folder's
name on, later ones from the store in memory or on disk, and any epoch of pairs that are streamed. Batches of one. A
turn is a whole epoch. All files have just been written, so that no disk is measured.

Memory is that of the process (and of its workers, less what they share with it) after the first turn, over what its
imports took.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baseline
import click
import measure
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

SEED = 0
QUALITY = 90  # of the JPEG files
CLASSIC = "classic"
CONTESTANTS = {
    "classic": "classic, one process",
    "workers": "classic, DataLoader with `num_workers=2`",
    "first": "p2pzoo, first epoch",
    "memory": "p2pzoo, later epochs, in memory",
    "prepare": "p2pzoo, first epoch, prepared on disk before it",
    "disk": "p2pzoo, later epochs, on disk",
    "stream": "p2pzoo, any epoch, streamed",
}
GOALS = {"first": 1, "memory": 15}  # times as fast as the classic path in one process


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=500, show_default=True, help="How many.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="Side of x and y in pixels.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of each contestant.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also keep the result in this file.")
@click.option("--contestant", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    pairs: int, size: int, rounds: int, as_json: bool, output: Path | None, contestant: str | None, folder: Path | None
) -> None:
    """Time the way from files to batches."""
    if contestant and folder:
        imported = measure.peak_bytes()
        work = MAKE[contestant](folder, pairs, size)
        peaks: list[int] = []

        def peak() -> int:
            peaks.append(measure.peak_bytes() + _workers())
            return peaks[0]

        measure.serve(work, {"imported_bytes": imported}, peak=peak)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder / "pairs", pairs, size)
        os.environ["P2PZOO_CACHE"] = str(folder / "cache")
        given = ("--size", size, "--pairs", pairs, "--folder", folder)
        found = {name: measure.Contestant(__file__, *given, "--contestant", name) for name in CONTESTANTS}
        measured = measure.take_turns(found, rounds, 1)
        pixels = difference(folder, pairs, size)
        megabytes = sum(file.stat().st_size for file in (folder / "pairs" / "train").iterdir()) / 1e6
    classic = measured[CLASSIC]["seconds"]
    result = {
        "benchmark": "data_loading", "pairs": pairs, "size": size, "jpeg_megabytes": round(megabytes, 1),
        "contestants": {
            name: {
                "pairs_per_second": measure.spread([pairs / seconds for seconds in each["seconds"]]),
                "ratio": measure.ratio(classic, each["seconds"]),
                "megabytes": round((each["peak_bytes"] - found[name].about["imported_bytes"]) / 1e6),
            }
            for name, each in measured.items()
        },
        "goals": GOALS,
        "pixels": pixels,
        "environment": measure.environment(),
    }  # fmt: skip
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))
    if pixels["same resize"]["largest"] > 0:
        click.echo("the two paths give different pixels", err=True)
        sys.exit(1)


def draw(folder: Path, pairs: int, size: int) -> None:
    """A|B as JPEG, and one for validation: smooth pictures with detail at every scale, as photos have it."""
    for name in ("train", "val"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for number in range(pairs + 1):
        picture = np.zeros((size, 2 * size, 3))
        side = 2
        while side <= size:
            noise = rng.integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
            scaled = Image.fromarray(noise).resize((2 * size, size), Image.Resampling.BICUBIC)
            picture += (np.asarray(scaled) - 128.0) / side**0.4
            side *= 2
        levels = (picture - picture.min()) / np.ptp(picture) * 255
        Image.fromarray(levels.astype(np.uint8)).save(
            folder / ("train" if number < pairs else "val") / f"{number:04}.jpg", quality=QUALITY
        )


# --- the contestants -------------------------------------------------------------------------------------------


class Opened:
    """The classic pairs as a DataLoader wants them."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return baseline.opened_pair(self.files[index], self.size)


def classic(folder: Path, pairs: int, size: int) -> Callable[[], None]:
    batches = baseline.batches(folder / "pairs" / "train", size, 1)

    def work() -> None:
        for _ in range(pairs):
            next(batches)

    return work


def workers(folder: Path, pairs: int, size: int) -> Callable[[], None]:
    opened: Any = Opened(folder / "pairs" / "train", size)
    loader = DataLoader(opened, batch_size=1, shuffle=True, num_workers=2, persistent_workers=True)

    def work() -> None:
        assert sum(1 for _ in loader) == pairs

    work()
    return work


def ours(folder: Path, size: int, store: str, **how: Any) -> Any:
    """The training batches of `folder` as a run makes them. `how`: of [train]."""
    from p2pzoo.config.settings import Compute, Train
    from p2pzoo.data import Store, train_batches
    from p2pzoo.plugin.loader import registry

    train = Train(**{"images": 10**9, "jitter": baseline.JITTER, **how})
    dataset = registry().get("dataset", "side-by-side").load()("train", root=folder / "pairs")
    compute: Any = {"store": store}
    kept = Store(dataset, enlarge=train.jitter, compute=Compute(**compute), origin="benchmark")
    kept.prepare()
    assert kept.size == (size, size)
    return train_batches(kept, train, SEED)


def epochs(folder: Path, pairs: int, size: int, store: str) -> Callable[[], None]:
    """Epochs that follow the first."""
    batches = ours(folder, size, store)
    done = 0

    def work() -> None:
        nonlocal done
        for step in range(done, done + pairs):
            batches[step]
        done += pairs

    work()
    return work


def beginnings(folder: Path, pairs: int, size: int, store: str) -> Callable[[], None]:
    """First epochs, each of a store of its own."""

    def work() -> None:
        shutil.rmtree(folder / "own", ignore_errors=True)
        os.environ["P2PZOO_CACHE"] = str(folder / "own")
        batches = ours(folder, size, store)
        for step in range(pairs):
            batches[step]

    ours(folder, size, "stream")[0]  # imports what it needs
    return work


MAKE: dict[str, Callable[[Path, int, int], Callable[[], None]]] = {
    "classic": classic,
    "workers": workers,
    "first": lambda folder, pairs, size: beginnings(folder, pairs, size, "memory"),
    "memory": lambda folder, pairs, size: epochs(folder, pairs, size, "memory"),
    "prepare": lambda folder, pairs, size: beginnings(folder, pairs, size, "disk"),
    "disk": lambda folder, pairs, size: epochs(folder, pairs, size, "disk"),
    "stream": lambda folder, pairs, size: epochs(folder, pairs, size, "stream"),
}


def _workers() -> int:
    """Bytes that belong to the processes that this one started alone, now. 0 where nobody tells."""
    found = 0
    for child in torch.multiprocessing.active_children():
        try:
            lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        found += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return found


# --- what is told ----------------------------------------------------------------------------------------------


def difference(folder: Path, pairs: int, size: int) -> dict[str, dict[str, float]]:
    """How far the pixels' levels, 0 to 255, are off the classic path's: the share that differs, and the most.

    same resize  neither path enlarges
    enlarged     by Pillow there, by torch here
    """
    return {
        "same resize": _off(folder, pairs, size, 1.0),
        "enlarged": _off(folder, pairs, size, baseline.JITTER),
    }


def _off(folder: Path, pairs: int, size: int, jitter: float) -> dict[str, float]:
    batches = ours(folder, size, "memory", jitter=jitter, mirror=False)
    side = batches.store.load_size[0]
    differing, largest = 0, 0
    for index in range(pairs):
        pair = batches.store[index]
        with Image.open(folder / "pairs" / "train" / f"{pair.id.removeprefix('train-')}.jpg") as file:
            both = file.convert("RGB")
        for name, left in (("x", 0), ("y", size)):
            image = both.crop((left, 0, left + size, size)).resize((side, side), Image.Resampling.BICUBIC)
            off = np.abs(np.asarray(image, np.int16) - getattr(pair, name))
            differing, largest = differing + int((off > 0).sum()), max(largest, int(off.max()))
    return {"share": round(differing / (pairs * 2 * 3 * side**2), 5), "largest": largest}


def table(result: dict[str, Any]) -> str:
    rows = ["| | pairs/s (spread) | times as fast (spread) | MB over imports |", "|---|---|---|---|"]
    for name in CONTESTANTS:
        each = result["contestants"][name]
        rate, (slowest, fastest) = each["pairs_per_second"]["median"], each["pairs_per_second"]["spread"]
        low, high = each["ratio"]["spread"]
        speed = "" if name == CLASSIC else f"{each['ratio']['median']:.2f} ({low:.2f} to {high:.2f})"
        rows.append(
            f"| {CONTESTANTS[name]} | {rate:,.0f} ({slowest:,.0f} to {fastest:,.0f}) | {speed} | {each['megabytes']} |"
        )
    same, enlarged, size = result["pixels"]["same resize"], result["pixels"]["enlarged"], result["size"]
    return "\n".join(
        [
            *rows,
            "",
            f"{result['pairs']} pairs of {2 * size}×{size} px, {result['jpeg_megabytes']} MB of JPEG. Without "
            f"enlargement pixels differ by {same['largest']} levels at most; enlarged, {enlarged['share']:.2%} differ, "
            f"by {enlarged['largest']} at most.",
        ]
    )


if __name__ == "__main__":
    main()
