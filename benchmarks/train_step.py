"""Compare one training step of p2pzoo with that of `baseline.py`, interleaved, each in a separate process.

    python benchmarks/train_step.py --size 256 --width 64 --batch 1

Both also load pairs: the baseline opens a JPEG with Pillow, p2pzoo crops it from its store. `--without lowering` (or
channels_last, fused_adam, keep_memory: switches of [compute]) adds p2pzoo with this switch off, `--with checkpointing`
with it on. `--reference PATH` adds the networks of a checkout of the public PyTorch code, in the classic step.
`--precision bf16` trains p2pzoo in bf16; baseline and reference stay in fp32. The time stands beside its floor
(roofline.py).
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import roofline
import torch
from baseline import Classic, batches
from steps import draw_pairs, experiment, training
from torch import Tensor, nn

from p2pzoo import config

WARM_UP = 3  # steps before timing
SIDE = 2048  # side of the square matrices whose product gives the peak rate of the machine
PRODUCTS = ("sgemm", "product")  # torch.mm in fp32, and the product of p2pzoo's convolutions in the step's precision
RATES = (*PRODUCTS, "copy")  # contestants that measure the machine


@click.command()
@click.option("--size", default=256, show_default=True, help="Side of the images in pixels.")
@click.option("--width", default=64, show_default=True, help="Channels of the first layers of G and D.")
@click.option("--batch", default=1, show_default=True, help="Images per step.")
@click.option("--rounds", default=9, show_default=True, help="Turns per contestant.")
@click.option("--steps", default=5, show_default=True, help="Steps per turn; a turn counts as their median.")
@click.option("--without", multiple=True, help="Add p2pzoo with this switch of [compute] off. May be repeated.")
@click.option("--with", "with_", multiple=True, help="Add p2pzoo with this switch of [compute] on. May be repeated.")
@click.option("--reference", type=click.Path(exists=True, path_type=Path), help="Checkout of the public PyTorch code.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Precision of p2pzoo's step.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file.")
@click.option("--contestant", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    size: int, width: int, batch: int, rounds: int, steps: int, without: tuple[str, ...], with_: tuple[str, ...],
    reference: Path | None, precision: str, as_json: bool, output: Path | None, contestant: str | None,
    folder: Path | None,
) -> None:  # fmt: skip
    """Time one training step at a size, width and batch."""
    torch.manual_seed(0)
    if contestant and folder:
        serve(contestant, folder, size, width, batch, reference, precision)
        return
    with tempfile.TemporaryDirectory() as temporary:
        draw_pairs(Path(temporary), size)
        shape = ("--size", size, "--width", width, "--batch", batch, "--folder", temporary, "--precision", precision)
        names = ["baseline", "ours", *(f"without {off}" for off in without), *(f"with {on}" for on in with_)]
        shape += ("--reference", reference) if reference else ()
        names += ["reference"] if reference else []
        contestants = {name: measure.Contestant(__file__, *shape, "--contestant", name) for name in (*names, *RATES)}
        counted = contestants["baseline"].about
        measured = measure.take_turns(contestants, rounds, steps)
    shape_of_step = {"size": size, "width": width, "batch": batch, "steps": steps, "precision": precision}
    result = summary(measured, counted, shape_of_step)
    measure.keep(result, output)
    click.echo(json.dumps(result) if as_json else table(result))


def serve(name: str, folder: Path, size: int, width: int, batch: int, reference: Path | None, precision: str) -> None:
    """Run as one contestant."""
    if name in RATES:
        measure.serve(machine_rate(name, precision))
        return
    if name == "baseline" or name == "reference":
        classic = (
            reference_step(reference, size, width) if name == "reference" and reference else ours_plain(size, width)
        )
        pairs = batches(folder, size, batch)
        about = roofline.count({"G": classic.G, "D": classic.D}, lambda: classic.step(*next(pairs)))

        def work() -> object:
            return classic.step(*next(pairs))
    else:
        word, _, switch = name.partition(" ")
        switched = [f"compute.{switch}={'true' if word == 'with' else 'false'}"] if switch else []
        switched.append(f"compute.precision={precision}")
        work, about = training(experiment(folder, size, width, batch, switched)), {}
    for _ in range(WARM_UP):
        work()
    measure.serve(work, about)


def machine_rate(name: str, precision: str) -> Callable[[], object]:
    """Return the work of a contestant that measures the machine: a matrix product, or a copy."""
    if name == "copy":
        return roofline.copying()
    a, b = torch.randn(2, SIDE, SIDE).unbind()
    if name == "sgemm":
        out = torch.empty(SIDE, SIDE)
        return lambda: torch.mm(a, b, out=out)
    from p2pzoo.compute.conv_algorithms import matmul_transposed

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = a.to(dtype), b.to(dtype)
    return lambda: matmul_transposed(a, b)


def ours_plain(size: int, width: int) -> Classic:
    """Return the classic step with the networks of p2pzoo as they are."""
    from p2pzoo.models.initialization import make_discriminator, make_generator

    overrides = [f"generator.width={width}", f"discriminator.width={width}"]
    made = config.load("zoo:base.toml", "laptop", overrides)
    D = make_discriminator(made, (3, 3), (size, size))
    assert D is not None
    return Classic(make_generator(made, (3, 3), (size, size)), D)


def reference_step(checkout: Path, size: int, width: int) -> Classic:
    """Return the classic step with the networks of the checkout.

    G halves the side as often as it is even, at most 8 times. D takes x and y concatenated.
    """
    spec = importlib.util.spec_from_file_location("networks", checkout / "models" / "networks.py")
    assert spec
    assert spec.loader
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    downs = min(8, (size & -size).bit_length() - 1)
    G: nn.Module = networks.UnetGenerator(3, 3, downs, width, norm_layer=nn.BatchNorm2d, use_dropout=True)
    D: nn.Module = networks.NLayerDiscriminator(6, width, n_layers=3, norm_layer=nn.BatchNorm2d)
    for network in (G, D):
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(part.weight, 0.0, 0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)

    def call_D(x: Tensor, y: Tensor) -> Any:
        return D(torch.cat((x, y), 1))

    return Classic(G, D, call_D=call_D)


def summary(measured: dict[str, Any], counted: dict[str, int], shape: dict[str, Any]) -> dict[str, Any]:
    work = dict.fromkeys(PRODUCTS, 2 * SIDE**3) | {"copy": 2 * roofline.COPY_BYTES}
    rates = {
        name: statistics.median(work[name] / seconds for seconds in measured.pop(name)["seconds"]) for name in RATES
    }
    times = {name: each["seconds"] for name, each in measured.items()}
    milliseconds = {name: round(1e3 * statistics.median(each), 1) for name, each in times.items()}
    floor = roofline.floor(counted, shape["precision"], rates["product"], rates["copy"])
    result: dict[str, Any] = {
        "benchmark": "train_step",
        **shape,
        "ratio": measure.ratio(times["baseline"], times["ours"]),
        "milliseconds": milliseconds,
        "peak_megabytes": {name: round(each["peak_bytes"] / 1e6) for name, each in measured.items()},
        "gflop": round(counted["flop"] / 1e9, 2),
        "floor": floor,
        "share_of_floor": round(sum(floor["milliseconds"].values()) / milliseconds["ours"], 3),
        "sgemm_gflop_per_second": round(rates["sgemm"] / 1e9),
        "product_gflop_per_second": round(rates["product"] / 1e9),
        "copy_gigabytes_per_second": round(rates["copy"] / 1e9, 1),
        "contributions": {
            name: measure.ratio(each, times["ours"]) for name, each in times.items() if name.startswith("with")
        },
        "environment": measure.environment(),
    }
    if "reference" in times:
        result["ratio_reference"] = measure.ratio(times["reference"], times["ours"])
        result["baseline_to_reference"] = measure.ratio(times["baseline"], times["reference"])
    return result


def table(result: dict[str, Any]) -> str:
    rows = [f"{'':<24} {'ms':>8} {'peak MB':>8}"]
    for name, milliseconds in result["milliseconds"].items():
        rows.append(f"{name:<24} {milliseconds:>8.1f} {result['peak_megabytes'][name]:>8}")
    low, high = result["ratio"]["spread"]
    floor = result["floor"]
    arithmetic, memory = floor["milliseconds"].values()
    rows += [
        f"p2pzoo in {result['precision']} is {result['ratio']['median']:.2f} times as fast ({low:.2f} to {high:.2f} "
        "over the rounds)",
        f"floor: {result['gflop']:.1f} GFLOP at {result['product_gflop_per_second']} GFLOP/s take {arithmetic:.1f} ms, "
        f"{sum(floor['megabytes'].values()):.0f} MB at {result['copy_gigabytes_per_second']} GB/s {memory:.1f} ms; "
        f"together {result['share_of_floor']:.0%} of p2pzoo's time",
    ]
    for name, each in result["contributions"].items():
        rows.append(f"{name}: {each['median']:.2f} times as long ({each['spread'][0]:.2f} to {each['spread'][1]:.2f})")
    if "ratio_reference" in result:
        low, high = result["ratio_reference"]["spread"]
        median = result["ratio_reference"]["median"]
        rows.append(f"against the checkout: {median:.2f} times as fast ({low:.2f} to {high:.2f})")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
    sys.exit()
