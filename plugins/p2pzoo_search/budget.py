"""How many images each trial trains on: a share of the recipe's, or what the time of `--budget` is enough for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from p2pzoo_bench.executors import Job
from p2pzoo_bench.rates import Rate, UnknownSpeed, measure_rates, name_rate

from p2pzoo.config.experiment import Experiment
from p2pzoo.runs.progress import format_duration
from p2pzoo.utils.errors import UserError
from p2pzoo_search.space import Range
from p2pzoo_search.trials import Request, to_overrides

OF_A_STEP = ("batch_size", "d_steps")  # of [train]: a step takes the product of them as images
Note = Callable[[str], None]
Groups = Mapping[str, Mapping[str, Experiment]]  # {setting: {the setting with a value: experiment}}


def count_images(
    request: Request, experiment: Experiment, folder: Path, *, budget: float | None, trials: int, jobs: int,
    threads: int, note: Note,
) -> int:  # fmt: skip
    """The number of images of each trial: the recipe's, the share of [search], or what fits into the budget.

    budget   seconds for all trials, `jobs` at a time, with their measurements; None: by share
    threads  of each run; 0: all cores

    The speed of the recipe is measured, and that with each choice and with both ends of each range, one at a time. All
    trials get as many images as the slowest combination has time for. Raises UserError if that is less than a step.
    """
    if budget is None:
        return max(1, round((request.space.share or 1) * experiment.train.images_seen))
    groups = _list_tried(request, experiment)
    rates = _measure(request, groups, folder, threads, note)
    training, evaluate = _seconds_of_slowest(groups, rates)
    measuring = evaluate * len(experiment.dataset.build(split="val"))
    seconds = budget * jobs / trials
    step_sizes = _list_step_sizes(request, groups)
    images = fit_whole_steps(int((seconds - measuring) / training), step_sizes)
    if images < 1:
        least = (training * max(step_sizes) + measuring) * trials / jobs
        raise UserError(
            f"--budget: {trials} trials need {format_duration(least)} for one training step each and for measuring the "
            "validation images: give more time, or fewer trials"
        )
    note(
        f"each of {trials} trials: {images:,} images in at most {format_duration(seconds)}, {measuring:.2g} s of it to "
        "measure"
    )
    return images


def fit_whole_steps(images: int, step_sizes: Sequence[int]) -> int:
    """The largest length at which the last step of no trial ends after so many images; 0 if that is less than a step.

    >>> fit_whole_steps(11, [1, 4])  # 3 steps of 4 would be 12 images
    8
    """
    return max(0, min(images // size * size for size in step_sizes))


def _list_tried(request: Request, experiment: Experiment) -> Groups:
    """{"": the recipe, NAME: the recipe with each choice of a setting, or each end of its range}.

    Loss weights and the optimizer's settings are left out: they do not change what is computed.
    """
    groups: dict[str, dict[str, Experiment]] = {"": {"": experiment}}
    for name, choice in request.space.settings.items():
        if name.endswith(".weight") or name.startswith("optimizer."):
            continue
        groups[name] = {}
        for value in choice.ends():
            [override] = to_overrides({name: value})
            try:
                groups[name][override] = request.load(override)
            except UserError:  # a parameter of another component: its trials come with that
                continue
    return groups


def _measure(request: Request, groups: Groups, folder: Path, threads: int, note: Note) -> dict[str, Rate]:
    """{id of an experiment: its rate}. Known ones are read from rates.json, under a name that says how they train.

    Raises UserError, with the setting, if one cannot be trained.
    """
    number = len({each.id for group in groups.values() for each in group.values()})
    note(f"measuring how fast the recipe trains, with {number} settings")
    rates: dict[str, Rate] = {}
    for name, group in groups.items():
        for override, each in group.items():
            key = name_rate(each, threads)
            try:
                rates[each.id] = measure_rates({key: Job("", each, folder).recipe(threads)}, folder / "rates.json")[key]
            except UnknownSpeed as error:
                reason = str(error).removeprefix(f"{key}: ")
                if not name:
                    raise UserError(f"{request.recipe}: {reason}") from None
                raise UserError(
                    f"{request.space.where(*name.split('.'))}  [search] {override}: {reason}: remove this value"
                ) from None
    return rates


def _seconds_of_slowest(groups: Groups, rates: Mapping[str, Rate]) -> tuple[float, float]:
    """Seconds to train on one image, and to measure one, of the slowest combination: as if the factors of its settings
    multiply. By image, since the settings may change how many a step takes."""

    def seconds(each: Experiment) -> tuple[float, float]:
        return rates[each.id].step / each.train.step_images, rates[each.id].evaluate

    own = groups[""][""]
    slowest = list(seconds(own))
    for group in groups.values():
        for part, of_own in enumerate(seconds(own)):
            slowest[part] *= max([1.0, *(seconds(each)[part] / of_own for each in group.values())])
    training, evaluate = slowest
    return training, evaluate


def _list_step_sizes(request: Request, groups: Groups) -> list[int]:
    """The numbers of images that a step of a trial can take."""
    values: list[Sequence[int]] = []
    for name in OF_A_STEP:
        searched = groups.get(f"train.{name}")
        tried = [searched] if searched else groups.values()
        found = sorted({getattr(each.train, name) for group in tried for each in group.values()})
        is_range = isinstance(request.space.settings.get(f"train.{name}"), Range)
        values.append(range(found[0], found[-1] + 1) if is_range else found)
    return sorted({math.prod(pair) for pair in itertools.product(*values)})
