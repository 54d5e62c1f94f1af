"""Compare data loading, from files to batches: p2pzoo and the classic way, on the same JPEG pairs in one run.

    python benchmarks/data_loading.py -o benchmarks/results/speed/data_loading.json

Classic: Pillow opens each pair when it is needed, then it is split, enlarged to 286 px (bicubic), cropped, flipped,
converted to float and scaled (see baseline.py); in the process itself, and by a DataLoader with two persistent workers.
p2pzoo: the batches of `p2pzoo run`, one after the other without training: the first epoch, starting with the folder
name; later epochs, from the store in memory or on disk; and any epoch of streamed pairs. The batch size is 1. A turn is
one epoch. All files have just been written, so no disk is measured.

Memory is that of the process after the first turn (with its workers, without memory that they share with it), minus the
memory after its imports.
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
QUALITY = 90  # JPEG quality of the files
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
GOALS = {"first": 1, "memory": 15}  # speed-up over the classic way in one process


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=500, show_default=True, help="Number of pairs.")
@click.option("--size", type=click.IntRange(8), default=256, show_default=True, help="Side of x and y in pixels.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns per contestant.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--contestant", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    pairs: int, size: int, rounds: int, as_json: bool, output: Path | None, contestant: str | None, folder: Path | None
) -> None:
    """Time data loading, from files to batches."""
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
        arguments = ("--size", size, "--pairs", pairs, "--folder", folder)
        contestants = {name: measure.Contestant(__file__, *arguments, "--contestant", name) for name in CONTESTANTS}
        measured = measure.take_turns(contestants, rounds, 1)
        pixels = difference(folder, pairs, size)
        megabytes = sum(file.stat().st_size for file in (folder / "pairs" / "train").iterdir()) / 1e6
    classic = measured[CLASSIC]["seconds"]
    result = {
        "benchmark": "data_loading", "pairs": pairs, "size": size, "jpeg_megabytes": round(megabytes, 1),
        "contestants": {
            name: {
                "pairs_per_second": measure.spread([pairs / seconds for seconds in each["seconds"]]),
                "ratio": measure.ratio(classic, each["seconds"]),
                "megabytes": round((each["peak_bytes"] - contestants[name].about["imported_bytes"]) / 1e6),
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
        click.echo("error: p2pzoo and the classic way give different pixels without enlargement", err=True)
        sys.exit(1)


def draw(folder: Path, pairs: int, size: int) -> None:
    """Write A|B pairs as JPEG, and one for validation: smooth noise with detail at every scale, like photos."""
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


class ClassicDataset:
    """The classic pairs as a map-style dataset for a DataLoader."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return baseline.open_pair(self.files[index], self.size)


def classic(folder: Path, pairs: int, size: int) -> Callable[[], None]:
    batches = baseline.batches(folder / "pairs" / "train", size, 1)

    def work() -> None:
        for _ in range(pairs):
            next(batches)

    return work


def workers(folder: Path, pairs: int, size: int) -> Callable[[], None]:
    dataset: Any = ClassicDataset(folder / "pairs" / "train", size)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=2, persistent_workers=True)

    def work() -> None:
        assert sum(1 for _ in loader) == pairs

    work()
    return work


def zoo_batches(folder: Path, size: int, store: str, **options: Any) -> Any:
    """Return the training batches of `folder` as a run makes them.

    store    [compute] store
    options  other options of [train]
    """
    from p2pzoo.config.settings import Compute, Train
    from p2pzoo.data import Store, train_batches
    from p2pzoo.plugin.loader import registry

    train = Train(**{"images": 10**9, "jitter": baseline.JITTER, **options})
    dataset = registry().get("dataset", "side-by-side").load()("train", root=folder / "pairs")
    compute: Any = {"store": store}
    pairs = Store(dataset, enlarge=train.jitter, compute=Compute(**compute), origin="benchmark")
    pairs.prepare()
    assert pairs.size == (size, size)
    return train_batches(pairs, train, SEED)


def later_epochs(folder: Path, pairs: int, size: int, store: str) -> Callable[[], None]:
    """Return the work of one epoch after the first."""
    batches = zoo_batches(folder, size, store)
    done = 0

    def work() -> None:
        nonlocal done
        for step in range(done, done + pairs):
            batches[step]
        done += pairs

    work()
    return work


def first_epochs(folder: Path, pairs: int, size: int, store: str) -> Callable[[], None]:
    """Return the work of a first epoch, with a new store each time."""

    def work() -> None:
        shutil.rmtree(folder / "own", ignore_errors=True)
        os.environ["P2PZOO_CACHE"] = str(folder / "own")
        batches = zoo_batches(folder, size, store)
        for step in range(pairs):
            batches[step]

    zoo_batches(folder, size, "stream")[0]  # so that imports are not timed
    return work


MAKE: dict[str, Callable[[Path, int, int], Callable[[], None]]] = {
    "classic": classic,
    "workers": workers,
    "first": lambda folder, pairs, size: first_epochs(folder, pairs, size, "memory"),
    "memory": lambda folder, pairs, size: later_epochs(folder, pairs, size, "memory"),
    "prepare": lambda folder, pairs, size: first_epochs(folder, pairs, size, "disk"),
    "disk": lambda folder, pairs, size: later_epochs(folder, pairs, size, "disk"),
    "stream": lambda folder, pairs, size: later_epochs(folder, pairs, size, "stream"),
}


def _workers() -> int:
    """Return the private memory of this process's children, in bytes; 0 where /proc is missing."""
    total = 0
    for child in torch.multiprocessing.active_children():
        try:
            lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total


# --- results ---------------------------------------------------------------------------------------------------


def difference(folder: Path, pairs: int, size: int) -> dict[str, dict[str, float]]:
    """Compare pixel levels, 0 to 255, with the classic way: the share that differs, and the largest difference.

    "same resize"  neither enlarges
    "enlarged"     Pillow enlarges in the classic way, torch in p2pzoo
    """
    return {
        "same resize": _off(folder, pairs, size, 1.0),
        "enlarged": _off(folder, pairs, size, baseline.JITTER),
    }


def _off(folder: Path, pairs: int, size: int, jitter: float) -> dict[str, float]:
    batches = zoo_batches(folder, size, "memory", jitter=jitter, mirror=False)
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
