"""report.html: a run on one self-contained page, refreshed during training. Every name in it is escaped."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe
import numpy as np
from PIL import Image
from torch import Tensor

from p2pzoo.config.experiment import Experiment
from p2pzoo.config.recipe import iter_leaves
from p2pzoo.images.grid import to_uint8_rgb
from p2pzoo.images.io import PILLOW_ERRORS, open_picture
from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.results import read_results
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.files import read_object, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_GRIDS = 12  # sample grids, spread over the training: more would make the page slow to load
MAX_WEBP_SIDE = 16383  # pixels, the limit of the format
LOGIT_NAMES = ("D.real", "D.fake")
CURVE_PANELS: dict[str, Callable[[str], bool]] = {  # {title: whether it shows a loss of this name}
    "Losses of G": lambda name: name.startswith("G."),
    "Losses of D": lambda name: name.startswith("D.") and name not in LOGIT_NAMES,
    "D's mean logits (above 0: real)": lambda name: name in LOGIT_NAMES,
}


@dataclass(frozen=True)
class Comparison:
    """A test image, (C, H, W) in [-1, 1] each. note: what was measured on it."""

    id: str
    note: str
    x: Tensor
    y_hat: Tensor
    y: Tensor


def write_report(run: Run, experiment: Experiment, comparisons: Sequence[Comparison] = ()) -> None:
    """Write the page from the files in the run's folder. comparisons: test images, once the run is evaluated."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text("utf-8"))
    tree = experiment.resolved()
    env = read_object(run.folder / "env.json") or {}
    env.pop("components", None)  # a long table, for machines
    env.pop("training", None)  # time and memory differ each time; the page must stay bit-identical
    page = template.render(
        title=experiment.title,
        run=run.folder.name,
        status=run.status,
        target=experiment.train.images_seen,
        results=read_results(run.results),
        environment=env,
        recipe=[(".".join(key), value, experiment.origin(key)) for key, value in iter_leaves(tree)],
        findings=read_findings(run),
        curves=plot_curves(run.lines("metrics.jsonl")),
        grids=[*_grids(_spread(sorted(run.samples.glob("images-*.png"))))],
        comparisons=[
            {"id": c.id, "note": c.note, **{name: _picture(getattr(c, name)) for name in ("x", "y_hat", "y")}}
            for c in comparisons
        ],
    )
    write_text(run.folder / "report.html", page)


def plot_curves(lines: Sequence[Mapping[str, Any]]) -> markupsafe.Markup:
    """The logged losses over the images seen, as inline SVG; empty if there are fewer than two lines."""
    import matplotlib

    if len(lines) < 2:
        return markupsafe.Markup("")
    with matplotlib.rc_context({"font.size": 9}):
        from matplotlib.figure import Figure

        panels = {
            title: names
            for title, is_in_panel in CURVE_PANELS.items()
            if (names := [name for name in lines[0] if is_in_panel(name)])
        }
        height = 2.2 * len(panels)  # inches
        figure = Figure(figsize=(8, height))
        # fixed margins: a layout engine draws everything twice
        figure.subplots_adjust(left=0.09, right=0.99, bottom=0.5 / height, top=1 - 0.3 / height, hspace=0.25)
        for axes, (title, names) in zip(
            np.ravel(figure.subplots(len(panels), 1, sharex=True)), panels.items(), strict=True
        ):
            for name in names:
                points = [(line["images"], line[name]) for line in lines if name in line]
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
            axes.set_title(title, loc="left", fontsize=9)
            for text in axes.legend(loc="best", frameon=False).get_texts():
                text.set_parse_math(False)  # dollar signs in a name are no formula
            axes.grid(alpha=0.3)
            axes.set_xlabel("images seen")
            axes.label_outer()
        return figure_to_svg(figure)


def figure_to_svg(figure: Figure) -> markupsafe.Markup:
    """An <svg> element to put into a page, bit-identical each time. matplotlib escapes all text in it."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "p2pzoo", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])


def data_uri(image: Image.Image) -> str:
    """The image as a data: URI (WebP), so that a page needs no other file. Shrinks images that WebP cannot hold."""
    if max(image.size) > MAX_WEBP_SIDE:
        image.thumbnail((MAX_WEBP_SIDE, MAX_WEBP_SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def parse_images_seen(path: Path) -> int:
    """The images seen, from the name of a sample grid.

    >>> parse_images_seen(Path("samples/images-00000500.png"))
    500
    """
    return int(path.stem.partition("-")[2])


def _grids(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """(images seen, data URI) of each sample grid. Skips damaged files: they must not end a run."""
    for path in paths:
        with contextlib.suppress(*PILLOW_ERRORS), open_picture(path) as picture:
            yield parse_images_seen(path), data_uri(picture)


def _picture(image: Tensor) -> str:
    return data_uri(Image.fromarray(to_uint8_rgb(image)))


def _spread(paths: list[Path]) -> list[Path]:
    """At most MAX_GRIDS of them, with the first and the last one."""
    if len(paths) <= MAX_GRIDS:
        return paths
    return [paths[round(i * (len(paths) - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)]
