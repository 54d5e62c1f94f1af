"""report.html: a run on one page that needs nothing else. Refreshed during training; every name in it is escaped."""

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
from p2pzoo.config.recipe import leaves
from p2pzoo.images.grid import to_rgb
from p2pzoo.images.io import UNREADABLE
from p2pzoo.runs.monitor import read_findings
from p2pzoo.runs.results import read_results
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.files import read_object, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRIDS = 12  # sample grids shown at most, over the whole of training
WEBP_LIMIT = 16383  # pixels a side
LOGITS = ("D.real", "D.fake")
PANELS: dict[str, Callable[[str], bool]] = {  # title: which of the logged names it shows
    "Losses of G": lambda name: name.startswith("G."),
    "Losses of D": lambda name: name.startswith("D.") and name not in LOGITS,
    "D's mean logits (above 0: real)": lambda name: name in LOGITS,
}


@dataclass(frozen=True)
class Comparison:
    """A test image, (C, H, W) in [-1, 1] each, and what was measured on it."""

    id: str
    note: str
    x: Tensor
    y_hat: Tensor
    y: Tensor


def write_report(run: Run, experiment: Experiment, comparisons: Sequence[Comparison] = ()) -> None:
    """Write the page from what the run's folder holds by now."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text("utf-8"))
    tree = experiment.resolved()
    env = read_object(run.folder / "env.json") or {}
    env.pop("training", None)  # what it took differs each time; the page is the same to the byte
    page = template.render(
        title=experiment.title,
        run=run.folder.name,
        status=run.status,
        target=experiment.train.images_seen,
        results=read_results(run.results),
        environment=env,
        recipe=[(".".join(key), value, experiment.origin(key)) for key, value in leaves(tree)],
        findings=read_findings(run),
        curves=curves(run.lines("metrics.jsonl")),
        grids=[*_grids(_spread(sorted(run.samples.glob("images-*.png"))))],
        comparisons=[
            {"id": c.id, "note": c.note, **{name: _picture(getattr(c, name)) for name in ("x", "y_hat", "y")}}
            for c in comparisons
        ],
    )
    write_text(run.folder / "report.html", page)


def curves(lines: Sequence[Mapping[str, Any]]) -> markupsafe.Markup:
    """The logged losses over images seen, as inline SVG; empty where there is nothing to draw yet."""
    import matplotlib

    if len(lines) < 2:
        return markupsafe.Markup("")
    with matplotlib.rc_context({"font.size": 9}):
        from matplotlib.figure import Figure

        panels = {
            title: names for title, wanted in PANELS.items() if (names := [name for name in lines[0] if wanted(name)])
        }
        figure = Figure(figsize=(8, 2.2 * len(panels)), layout="constrained")
        for axes, (title, names) in zip(
            np.ravel(figure.subplots(len(panels), 1, sharex=True)), panels.items(), strict=True
        ):
            for name in names:
                known = [line for line in lines if name in line]
                axes.plot([line["images"] for line in known], [line[name] for line in known], label=name, linewidth=1)
            axes.set_title(title, loc="left", fontsize=9)
            for text in axes.legend(loc="best", frameon=False).get_texts():
                text.set_parse_math(False)  # a name is a name, also with dollar signs in it
            axes.grid(alpha=0.3)
            axes.set_xlabel("images seen")
            axes.label_outer()
        return svg(figure)


def svg(figure: Figure) -> markupsafe.Markup:
    """A figure to stand inside a page, the same to the byte each time. matplotlib escapes what it writes."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "p2pzoo", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])


def data_uri(image: Image.Image) -> str:
    """The picture itself as an address, so that the page asks for nothing."""
    if max(image.size) > WEBP_LIMIT:
        image.thumbnail((WEBP_LIMIT, WEBP_LIMIT))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def images_of(path: Path) -> int:
    """samples/images-00000500.png -> 500."""
    return int(path.stem.partition("-")[2])


def _grids(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """(images seen, picture) of the samples. One that was damaged since is left out: it spoils no run."""
    for path in paths:
        with contextlib.suppress(*UNREADABLE), Image.open(path) as picture:
            yield images_of(path), data_uri(picture)


def _picture(image: Tensor) -> str:
    return data_uri(Image.fromarray(to_rgb(image)))


def _spread(paths: list[Path]) -> list[Path]:
    """At most GRIDS of them, first and last included."""
    if len(paths) <= GRIDS:
        return paths
    return [paths[round(i * (len(paths) - 1) / (GRIDS - 1))] for i in range(GRIDS)]
