"""Measure the margins δ of the claims, and write claims.toml with them. It was run once, before the first counted run.

    python benchmarks/write_claims.py -o benchmarks/claims.toml

δ of a metric is 20% of what it says of the ground truth's texture: (photos - each class in its mean colour), over all
test tiles of all folds. The paper's effects stand beside it and are never used.
"""

from __future__ import annotations

from pathlib import Path

import click
from p2pzoo_bench.bench import Bench
from p2pzoo_bench.comparison import CachedReduce, difference_over_folds, pair_runs
from p2pzoo_bench.table_file import read_table

from p2pzoo.plugin.loader import registry
from p2pzoo.utils.files import write_text

HERE = Path(__file__).parent
TABLE = HERE / "table1_losses.toml"
METRICS = {  # name in CLAIMS: column of the table
    "acc": "fcn_score", "iou": "fcn_score.class_iou", "r_acc": "fcn_robust",
    "r_iou": "fcn_robust.class_iou", "lab_a": "lab_histogram.a", "lab_b": "lab_histogram.b",
}  # fmt: skip
SHARE = 0.2
CLAIMS = """\
# The claims of pix2pix's tables, written before the first run that judges them (README.md, "The paper on trial").
# margin: 20% of (photos - each class in its mean colour), measured by write_claims.py:
#     {measured}.
# All rows train in bf16. A claim about FCN-score must hold under both scorers. No photo is flat in labels: there the
# margin is that of FCN-score.

title = "pix2pix on trial"
source = "Isola et al. 2017 (v3), Tables 1, 2, 3 and 6, Figure 7"
# Added later: it changes no claim, no margin and no run. If the sign changes later, a verdict holds "at 14,000 images".
curves = "trial_curves.toml"

[claims.P1]
text = "L1 + cGAN is better than L1"
source = "Table 1"
table = "table1_losses.toml"
parts = [
    {{ better = "l1_cgan", worse = "l1", metric = "fcn_score", margin = {acc}, paper = 0.24 }},
    {{ better = "l1_cgan", worse = "l1", metric = "fcn_score.class_iou", margin = {iou}, paper = 0.06 }},
    {{ better = "l1_cgan", worse = "l1", metric = "fcn_robust", margin = {r_acc}, paper = 0.24 }},
    {{ better = "l1_cgan", worse = "l1", metric = "fcn_robust.class_iou", margin = {r_iou}, paper = 0.06 }},
]

[claims.P2]
text = "L1 + cGAN is better than GAN and than cGAN"
source = "Table 1"
table = "table1_losses.toml"
parts = [
    {{ better = "l1_cgan", worse = "gan", metric = "fcn_score", margin = {acc}, paper = 0.44 }},
    {{ better = "l1_cgan", worse = "cgan", metric = "fcn_score", margin = {acc}, paper = 0.09 }},
    {{ better = "l1_cgan", worse = "gan", metric = "fcn_robust", margin = {r_acc}, paper = 0.44 }},
    {{ better = "l1_cgan", worse = "cgan", metric = "fcn_robust", margin = {r_acc}, paper = 0.09 }},
]

[claims.P3]
text = "D of 34 px is better than D of 1 px (the paper's 70 and 1 of 256)"
source = "Table 3"
table = "table3_receptive_field.toml"
parts = [
    {{ better = "patch34", worse = "pixel", metric = "fcn_score", margin = {acc}, paper = 0.27 }},
    {{ better = "patch34", worse = "pixel", metric = "fcn_robust", margin = {r_acc}, paper = 0.27 }},
]

[claims.P4]
text = "D of 34 px is better than D of 142 px (the paper's 70 and 286 of 256)"
source = "Table 3"
table = "table3_receptive_field.toml"
parts = [
    {{ better = "patch34", worse = "patch142", metric = "fcn_score", margin = {acc}, paper = 0.24 }},
    {{ better = "patch34", worse = "patch142", metric = "fcn_score.class_iou", margin = {iou}, paper = 0.06 }},
    {{ better = "patch34", worse = "patch142", metric = "fcn_robust", margin = {r_acc}, paper = 0.24 }},
    {{ better = "patch34", worse = "patch142", metric = "fcn_robust.class_iou", margin = {r_iou}, paper = 0.06 }},
]

[claims.P5]                         # tested with running statistics, and with ten images together
text = "the U-Net is better than the encoder-decoder, with L1 and with L1 + cGAN"
source = "Table 2"
table = "table2_generators.toml"
parts = [
    {{ better = "unet_l1", worse = "encdec_l1", metric = "fcn_score_eval", margin = {acc}, paper = 0.13 }},
    {{ better = "unet_l1", worse = "encdec_l1", metric = "fcn_score_ten", margin = {acc}, paper = 0.13 }},
    {{ better = "unet_l1", worse = "encdec_l1", metric = "fcn_robust_eval", margin = {r_acc}, paper = 0.13 }},
    {{ better = "unet_l1", worse = "encdec_l1", metric = "fcn_robust_ten", margin = {r_acc}, paper = 0.13 }},
    {{ better = "unet_l1_cgan", worse = "encdec_l1_cgan", metric = "fcn_score_eval", margin = {acc}, paper = 0.26 }},
    {{ better = "unet_l1_cgan", worse = "encdec_l1_cgan", metric = "fcn_score_ten", margin = {acc}, paper = 0.26 }},
    {{ better = "unet_l1_cgan", worse = "encdec_l1_cgan", metric = "fcn_robust_eval", margin = {r_acc}, paper = 0.26 }},
    {{ better = "unet_l1_cgan", worse = "encdec_l1_cgan", metric = "fcn_robust_ten", margin = {r_acc}, paper = 0.26 }},
]

[claims.P6]
text = "the encoder-decoder loses by the cGAN, and the U-Net gains"
source = "Table 2"
table = "table2_generators.toml"
parts = [
    {{ better = "encdec_l1", worse = "encdec_l1_cgan", metric = "fcn_score_eval", margin = {acc}, paper = 0.06 }},
    {{ better = "encdec_l1", worse = "encdec_l1_cgan", metric = "fcn_score_ten", margin = {acc}, paper = 0.06 }},
    {{ better = "encdec_l1", worse = "encdec_l1_cgan", metric = "fcn_robust_eval", margin = {r_acc}, paper = 0.06 }},
    {{ better = "encdec_l1", worse = "encdec_l1_cgan", metric = "fcn_robust_ten", margin = {r_acc}, paper = 0.06 }},
    {{ better = "unet_l1_cgan", worse = "unet_l1", metric = "fcn_score_eval", margin = {acc}, paper = 0.07 }},
    {{ better = "unet_l1_cgan", worse = "unet_l1", metric = "fcn_score_ten", margin = {acc}, paper = 0.07 }},
    {{ better = "unet_l1_cgan", worse = "unet_l1", metric = "fcn_robust_eval", margin = {r_acc}, paper = 0.07 }},
    {{ better = "unet_l1_cgan", worse = "unet_l1", metric = "fcn_robust_ten", margin = {r_acc}, paper = 0.07 }},
]
valid = [                           # an encoder-decoder that names the largest class everywhere says nothing
    {{ row = "encdec_l1", metric = "fcn_score_eval", above = "fcn_score_eval.largest_class" }},
    {{ row = "encdec_l1_cgan", metric = "fcn_score_eval", above = "fcn_score_eval.largest_class" }},
]

[claims.P7]
text = "photo to labels: L1 is better than L1 + cGAN, and that than cGAN"
source = "Table 6"
table = "table6_photo_to_labels.toml"
parts = [
    {{ better = "l1", worse = "l1_cgan", metric = "label_accuracy", margin = {acc}, paper = 0.03 }},
    {{ better = "l1_cgan", worse = "cgan", metric = "label_accuracy", margin = {acc}, paper = 0.09 }},
]

[claims.P8]
text = "the colours of L1 + cGAN are nearer to those of photos than those of L1, in a and in b"
source = "Figure 7"
table = "table1_losses.toml"
parts = [
    {{ better = "l1_cgan", worse = "l1", metric = "lab_histogram.a", margin = {lab_a}, paper = 0.15 }},
    {{ better = "l1_cgan", worse = "l1", metric = "lab_histogram.b", margin = {lab_b}, paper = 0.12 }},
]

[claims.S1]
text = "L1 + cGAN and L1 + GAN are alike"
source = "Table 1"
table = "table1_losses.toml"
described = true
parts = [{{ better = "l1_cgan", worse = "l1_gan", metric = "fcn_score", margin = {acc}, paper = 0.02 }}]

[claims.S2]
text = "D of 34 px and D of 16 px are alike"
source = "Table 3"
table = "table3_receptive_field.toml"
described = true
parts = [{{ better = "patch34", worse = "patch16", metric = "fcn_score", margin = {acc}, paper = 0.01 }}]

[claims.S3]
text = "L1 + cGAN and cGAN are alike in class IoU"
source = "Table 1"
table = "table1_losses.toml"
described = true
parts = [{{ better = "l1_cgan", worse = "cgan", metric = "fcn_score.class_iou", margin = {iou}, paper = 0.01 }}]
"""


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@click.option("--runs", default="runs", type=click.Path(path_type=Path), help="Folder for what was measured.")
def main(output: Path, runs: Path) -> None:
    """Measure the margins of the claims and write them."""
    write_text(output, claims_text(measure_differences(runs)))


def measure_differences(runs: Path) -> dict[str, float]:
    """{name of METRICS: photos - flat colours}, over the test tiles of all folds. Trains nothing."""
    comparison = Bench(read_table(str(TABLE)), registry(), runs).compare({})
    rows = {row.name: row for row in comparison.rows}
    if failed := [row for name in ("photos", "flat") if (row := rows[name].failed)]:
        raise click.ClickException(failed[0])
    pairs = pair_runs(rows["photos"], rows["flat"], folds=True)
    differences = {}
    for name, column in METRICS.items():
        metric, _, key = column.partition(".")
        difference, _ = difference_over_folds(pairs, CachedReduce(comparison.metrics[metric], metric), key or "value")
        differences[name] = difference.value
    return differences


def claims_text(differences: dict[str, float]) -> str:
    """claims.toml with these differences of photos and flat colours."""
    measured = ", ".join(f"{METRICS[name]} {value:.3f}" for name, value in differences.items())
    measured = measured.replace(", lab", ",\n#     lab", 1)
    return CLAIMS.format(measured=measured, **{name: round(SHARE * value, 3) for name, value in differences.items()})


if __name__ == "__main__":
    main()
