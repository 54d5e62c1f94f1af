"""The curves of a report: every logged loss, in milliseconds, with nothing that a page could run."""

import math
import re

import pytest

from p2pzoo.images.curves import MAX_INTERVALS, find_ticks, plot_curves, thin


def test_curves_show_every_logged_loss_and_escape_its_name():
    lines = [{"images": i, "lr": 1.0, "G.<i>": 1.0 / i, "D.gan": 0.5, "D.real": 1.0} for i in (1, 2, 3)]
    lines[2]["D.r1"] = 0.1  # logged less often
    panels = plot_curves(lines)
    assert [[*panel.strokes] for panel in panels] == [["G.<i>"], ["D.gan", "D.r1"], ["D.real"]]
    svg = "".join(panel.svg for panel in panels)
    assert "<title>G.&lt;i&gt;</title>" in svg
    assert "<i>" not in svg
    assert panels == plot_curves(lines), "the same bytes for the same losses"


def test_a_curve_goes_through_its_points():
    [panel] = plot_curves([{"images": images, "G.l1": value} for images, value in ((10, 1.0), (20, 3.0), (30, 2.0))])
    [points] = re.findall(r"points='([^']*)'", panel.svg)
    (left, bottom), (middle, top), (right, half) = (map(float, point.split(",")) for point in points.split())
    assert left < middle < right
    assert top < half < bottom, "y grows downwards"
    assert half == pytest.approx((top + bottom) / 2, abs=0.1)


def test_curves_differ_in_colour_and_then_in_dashes():
    [panel] = plot_curves([{"images": i, **{f"G.{n}": float(n) for n in range(20)}} for i in (1, 2)])
    assert len({*panel.strokes.values()}) == 20
    assert all("var(--curve-" in stroke for stroke in panel.strokes.values()), "colours for light and dark pages"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, "text", None, [1.0]])
def test_numbers_that_cannot_be_drawn_are_left_out(value):
    good = [{"images": i, "G.l1": 0.5} for i in (1, 2)]
    assert plot_curves([*good, {"images": 3, "G.l1": value}])[0].svg == plot_curves(good)[0].svg
    assert plot_curves([{"images": i, "G.l1": value} for i in (1, 2)]) == []


def test_a_spike_of_a_long_log_stays_visible():
    points = [(i, 9.0 if i == 12_345 else 0.1) for i in range(20_000)]
    kept = thin(points)
    assert len(kept) <= 2 * MAX_INTERVALS
    assert (12_345, 9.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (-0.07, 0.04),
        (1e-9, 2e-9),
        (3e-18, 7e-18),
        (7e-46, 4e-45),
        (0.0, 595_000.0),
        (-3e20, 1e29),
        (0.69314, 0.69316),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high):
    ticks = find_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low * (1 - 1e-6) <= ticks[0] < ticks[-1] <= high * (1 + 1e-6)
    [panel] = plot_curves([{"images": 1, "G.l1": low}, {"images": 2, "G.l1": high}])
    labels = re.findall(r'text-anchor="end">([^<]*)<', panel.svg)
    assert len({*labels}) == len(labels), "two ticks never have the same text"


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_a_constant_loss_has_a_curve(value):
    [panel] = plot_curves([{"images": i, "G.l1": value} for i in (1, 2)])
    assert "polyline" in panel.svg
    assert "nan" not in panel.svg
