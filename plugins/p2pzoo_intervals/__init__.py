"""Intervals with a guarantee: generator `quantile-head`, metric `interval-coverage`, command `calibrate`.

Imports p2pzoo only: torch is imported when a recipe or a command uses something of it.
"""

from collections.abc import Callable

import p2pzoo


@p2pzoo.hookimpl
def register_generators(register: Callable[..., None]) -> None:
    register(
        "quantile-head",
        "p2pzoo_intervals.head:QuantileHead",
        summary="Any generator that gives a lower and an upper quantile of each pixel",
        paper="doi:10.2307/1913643; doi:10.3982/ECTA7880",
    )


@p2pzoo.hookimpl
def register_metrics(register: Callable[..., None]) -> None:
    register(
        "interval-coverage",
        "p2pzoo_intervals.coverage:IntervalCoverage",
        summary="Share of y's values inside the intervals of a calibrated model; its target is the calibrated level",
        paper="arXiv:2208.02814",
    )


@p2pzoo.hookimpl
def register_commands(register: Callable[..., None]) -> None:
    register(
        "calibrate",
        "p2pzoo_intervals.commands:calibrate_command",
        summary="Calibrate the intervals of a trained model on validation images.",
    )
