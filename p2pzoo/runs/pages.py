"""What all HTML pages share: the template environment, page.css, and pictures and figures inside a page.

Pages follow the light or dark scheme of the browser, escape all text, and load no other file.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WEBP_SIDE = 16383  # pixels, the limit of the format
BY_SCHEME = "<style>svg{color:#000}@media(prefers-color-scheme:dark){svg{color:#fff}}</style>"


def render_page(template: Path, **values: Any) -> str:
    """Render the page of a template file. A template may `{% include "page.css" %}` and has the filter `breakable`."""
    return _compile(template.read_text("utf-8")).render(values)


@functools.cache
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    environment.filters["breakable"] = breakable
    return environment


def breakable(text: object) -> Markup:
    """Escape text and let lines break after its dots, slashes, hyphens and underscores, not in the middle of a word.

    >>> breakable("train.batch_size")
    Markup('train.<wbr>batch_<wbr>size')
    """
    return Markup(re.sub(r"([._/\\-])(?=.)", r"\1<wbr>", str(escape(text))))


def data_uri(image: Image.Image) -> str:
    """The image as a data: URI (WebP), so that a page needs no other file. Shrinks images that WebP cannot hold."""
    if max(image.size) > MAX_WEBP_SIDE:
        image.thumbnail((MAX_WEBP_SIDE, MAX_WEBP_SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85, method=1)  # half the time of method 4, files 8% larger
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def figure_to_svg(figure: Figure) -> Markup:
    """An <svg> element to put into a page, bit-identical each time. matplotlib escapes all text in it.

    Black becomes the text colour of the page, and the backgrounds of figure, axes and legends become transparent.
    """
    import matplotlib

    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for patch in (figure.patch, *(axes.patch for axes in figure.axes), *(legend.get_frame() for legend in legends)):
        patch.set_facecolor("none")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "p2pzoo", "svg.fonttype": "none"}):
        # facecolor: without it, savefig takes that of rcParams
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    text = out.getvalue()
    text = re.sub(r'style="[^"]*"', lambda style: style[0].replace("#000000", "currentColor"), text)
    # matplotlib writes no fill where it is black: the default is inherited
    return Markup(text[text.index("<svg") :].replace("<svg", '<svg fill="currentColor" role="img"', 1))


def figure_to_svg_file(figure: Figure) -> str:
    """The content of an SVG file, black on light backgrounds and white on dark ones."""
    start, end, rest = str(figure_to_svg(figure)).partition(">")
    return f"{start}{end}\n{BY_SCHEME}{rest}"
