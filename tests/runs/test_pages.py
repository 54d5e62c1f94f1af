"""What all pages share: text that breaks between words, pictures, and figures that fit light and dark pages."""

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from p2pzoo.runs.pages import MAX_WEBP_SIDE, breakable, data_uri, figure_to_svg, figure_to_svg_file


def make_figure():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], "k--", label="a <b> & $c")
    axes.legend().set_frame_on(True)
    return figure


def test_a_figure_has_the_colours_of_its_page():
    svg = str(figure_to_svg(make_figure()))
    assert svg.startswith('<svg fill="currentColor"')
    assert "#ffffff" not in svg
    assert "#000000" not in svg
    assert "stroke: currentColor" in svg
    assert svg == str(figure_to_svg(make_figure())), "the same bytes each time"


def test_a_figure_escapes_its_labels():
    assert "<b>" not in figure_to_svg(make_figure())


def test_a_file_of_a_figure_follows_the_scheme_of_its_viewer():
    svg = figure_to_svg_file(make_figure())
    assert svg.startswith("<svg")
    assert "prefers-color-scheme:dark" in svg
    assert svg.endswith("</svg>\n")


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "shade"), [("light", 0), ("dark", 255)])
def test_a_browser_draws_a_figure_on_a_light_and_on_a_dark_page(browser, scheme, shade, tmp_path):
    figure = Figure(figsize=(1, 1))
    figure.add_artist(Line2D([0, 1], [0.5, 0.5], color="k", linewidth=40))
    (tmp_path / "f.svg").write_text(figure_to_svg_file(figure))
    (tmp_path / "p.html").write_text('<style>:root { color-scheme: light dark }</style><img src="f.svg">')
    page = browser.new_page(viewport={"width": 150, "height": 150}, color_scheme=scheme)
    page.goto((tmp_path / "p.html").as_uri())
    page.screenshot(path=str(tmp_path / "p.png"))
    assert Image.open(tmp_path / "p.png").convert("L").getpixel((60, 60)) == shade


def test_lines_break_between_the_words_of_a_key_only():
    assert breakable("train.batch_size") == "train.<wbr>batch_<wbr>size"
    assert breakable("a<b>/c.toml:3") == "a&lt;b&gt;/<wbr>c.<wbr>toml:3"
    assert breakable("ends.") == "ends."


def test_a_very_tall_picture_still_fits_into_a_page():
    assert data_uri(Image.new("RGB", (8, MAX_WEBP_SIDE + 100))).startswith("data:image/webp;base64,")
