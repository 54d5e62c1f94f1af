"""A component under test, the checks of its kind, and what each of them found.

A check is a function `check_*(case)`: it returns (a word on how, or None) where the promise holds, raises
AssertionError with one line where it does not, and DoesNotApply where nothing was promised.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.models.build import build
from p2pzoo.plugin import schema
from p2pzoo.plugin.loader import plugins
from p2pzoo.plugin.registry import Entry
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import nearest

Status = Literal["pass", "fail", "expected failure", "does not apply"]
Size = tuple[int, int]

WIDTHS = (4, 8, 16, 32)  # of a component with a parameter `width`: the first that it takes
SIDES = (32, 64, 96, 128, 256)  # px of the images that networks are shown
ROOM = 4  # values a side of a network's coarsest map, if it has them at one of SIDES: of fewer, norms magnify rounding
BATCH = 2
SIDE = 32  # px of the images that losses and augmentations are shown


class DoesNotApply(Exception):
    """The component promises nothing of what a check asks, or cannot be had here."""


@dataclass
class Case:
    """One component with the parameters that it is checked with.

    component  what is built. Parameters that are not given have their defaults, but for `width`: that is small
    size       (H, W) of the images that a network is shown: the smallest that it takes and that leave it room
    kept       what one check has made and another can use
    """

    component: Component
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry, given: Mapping[str, Any] | None = None) -> Case:
        """Raises UserError for what a recipe could not give, and DoesNotApply where a parameter has to be given."""
        factory, given = entry.load(), dict(given or {})
        try:
            found = _with_small_width(entry, factory, given)
        except schema.Faults as error:
            if all(not name for name, _ in error.faults):
                raise DoesNotApply("; ".join(told for _, told in error.faults)) from None
            raise UserError(*(f"{entry.kind} '{entry.name}' {told}" for _, told in error.faults)) from None
        except TypeError as error:
            raise AssertionError(str(error)) from None
        return cls(found)

    @property
    def kind(self) -> str:
        return self.component.entry.kind

    @property
    def name(self) -> str:
        return self.component.entry.name

    def make(self, **offered: Any) -> Any:
        """The component itself. Raises DoesNotApply where it lacks a package, weights or files."""
        with self.lacking():
            return self.component.build(**offered)

    def term(self) -> Any:
        """A GAN loss or loss, for the images of `partners.batch`."""
        return self.make(in_channels=3, out_channels=3, size=(SIDE, SIDE))

    @staticmethod
    @contextlib.contextmanager
    def lacking() -> Iterator[None]:
        """Inside, a constructor's UserError (a package, weights or files are missing) becomes DoesNotApply."""
        try:
            yield
        except UserError as error:
            if isinstance(error.__cause__, UserError):
                raise DoesNotApply(error.faults[0]) from None
            raise

    def network(self, channels: tuple[int, int] = (3, 3), size: Size | None = None, seed: int = 0) -> nn.Module:
        """A generator or discriminator with weights of its own making, in training mode."""
        with rng.torch_seed(seed), self.lacking():
            return build(self.component, channels, size or self.size).train()

    @functools.cached_property
    def size(self) -> Size:
        return _size(self.component)

    def inputs(self, channels: tuple[int, int] = (3, 3), size: Size | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """What the network is called with: x, or x and y."""
        shapes = channels[: 1 if self.kind == "generator" else 2]
        return tuple(images(count, size or self.size, seed=seed + 1 + i) for i, count in enumerate(shapes))

    @property
    def declared(self) -> Mapping[str, str]:
        """What the component itself says that it does not pass: {check: reason}."""
        return getattr(self.component.factory, "known_failures", {})


def images(channels: int, size: Size, *, batch: int = BATCH, seed: int = 0) -> Tensor:
    """(batch, channels, *size) in [-1, 1], always the same."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, generator=draw) * 2 - 1


def maps(output: Any) -> list[Tensor]:
    """The tensors of a network's output: ŷ, or the logits."""
    return [output] if isinstance(output, Tensor) else list(output)


def _small_widths(annotation: Any) -> tuple[int, ...]:
    param = schema.Param("width", annotation, None)
    taken = []
    for width in WIDTHS:
        try:
            taken.append(param.check(width))
        except ValueError:
            continue
    return tuple(taken)


def _with_small_width(entry: Entry, factory: Callable[..., Any], given: Mapping[str, Any]) -> Component:
    found = Component(entry, factory, schema.check(factory, given))
    width = schema.params_of(factory).get("width")
    if width is None or "width" in given or entry.kind not in ("generator", "discriminator"):
        return found
    for value in _small_widths(width.annotation):
        small = Component(entry, factory, schema.check(factory, {**given, "width": value}))
        try:
            _size(small)
        except Exception:  # this one is too small for it
            continue
        return small
    return found


def _size(component: Component) -> Size:
    refused: Exception | None = None
    least: int | None = None
    for side in SIDES:
        try:
            with torch.device("meta"), Case.lacking():
                network = build(component, (3, 3), (side, side))
                shown = torch.zeros(BATCH, 3, side, side)
                network(shown) if component.entry.kind == "generator" else network(shown, shown)
        except (UserError, ValueError, RuntimeError) as error:
            refused = refused or error
            continue
        if side >= ROOM * getattr(network, "size_divisor", 1):
            return side, side
        least = least or side
    if least is not None:
        return least, least
    raise AssertionError(f"takes images of none of {', '.join(map(str, SIDES))} px a side: {one_line(refused)}")


# --- findings --------------------------------------------------------------------------------------------------


Check = Callable[[Case], str | None]


@dataclass(frozen=True)
class Finding:
    """What a check found. `told`: why it failed, does not apply or is expected to fail; or how it was checked."""

    status: Status
    told: str = ""
    error: BaseException | None = field(default=None, repr=False)


@dataclass
class Trial:
    """A component of a plugin, a check of its kind, and the reason why it is expected to fail, or None."""

    entry: Entry
    check: Check
    parameters: Mapping[str, Any]
    cases: dict[Entry, Case] = field(repr=False)
    expected: str | None = None

    @property
    def component(self) -> str:
        return f"{self.entry.kind}.{self.entry.name}"

    @property
    def check_name(self) -> str:
        return self.check.__name__.removeprefix("check_")

    def __str__(self) -> str:
        return f"{self.component}-{self.check_name}"

    def run(self) -> Finding:
        """Never raises but for what ends the process."""
        try:
            if self.entry not in self.cases:
                self.cases[self.entry] = Case.of(self.entry, self.parameters)
            case = self.cases[self.entry]
        except DoesNotApply as told:
            return Finding("does not apply", str(told))
        except Exception as error:
            return Finding("fail", one_line(error), error)
        reason = self.expected or case.declared.get(self.check_name)
        threads = torch.get_num_threads()
        try:
            how = self.check(case)
        except DoesNotApply as told:
            return Finding("does not apply", str(told))
        except Exception as error:
            return Finding("expected failure", reason) if reason else Finding("fail", one_line(error), error)
        finally:
            torch.set_num_threads(threads)
        if reason:
            return Finding("fail", f"is expected to fail ({reason}), and passes")
        return Finding("pass", how or "")


def trials(
    plugin: str,
    checks: Mapping[str, Sequence[Check]],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Trial]:
    """Every component of a plugin with every check of its kind.

    parameters         {component: {parameter: value}}
    expected_failures  {check, "component.check" or "kind.component.check": reason}

    A component is named as recipes name it, or "kind.name". Raises UserError for a plugin that is not there or does not
    load, for names that are nobody's, and for a failure without a reason.
    """
    found = next((each for each in plugins() if each.name == plugin), None)
    if found is None:
        raise UserError(f"no plugin '{plugin}'{nearest(plugin, [each.name for each in plugins()])}")
    if found.error:
        raise UserError(f"plugin '{plugin}' does not load: {found.error}")
    given, expected = dict(parameters or {}), dict(expected_failures or {})
    cases: dict[Entry, Case] = {}
    made, used = [], set()
    for entry in found.entries:
        names = [name for name in (entry.name, f"{entry.kind}.{entry.name}") if name in given]
        used.update(names)
        values = {key: value for name in names for key, value in given[name].items()}
        for check in checks[entry.kind]:
            trial = Trial(entry, check, values, cases)
            ends = [trial.check_name, f"{entry.name}.{trial.check_name}", f"{trial.component}.{trial.check_name}"]
            reasons = [end for end in ends if end in expected]
            used.update(reasons)
            trial.expected = expected[reasons[-1]] if reasons else None
            made.append(trial)
    components = [name for entry in found.entries for name in (entry.name, f"{entry.kind}.{entry.name}")]
    for name in given.keys() - used:
        raise UserError(f"parameters: plugin '{plugin}' has no component '{name}'{nearest(name, components)}")
    known = [
        *dict.fromkeys(name for trial in made for name in (trial.check_name, f"{trial.component}.{trial.check_name}"))
    ]
    for name in expected.keys() - used:
        raise UserError(f"expected_failures: plugin '{plugin}' has no check '{name}'{nearest(name, known, bare=())}")
    for name, reason in expected.items():
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f"expected_failures: '{name}' needs a reason")
    return made


def run(made: Sequence[Trial]) -> Iterator[tuple[Trial, Finding]]:
    for trial in made:
        yield trial, trial.run()


def one_line(error: BaseException | None) -> str:
    """An error as a table's cell has it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if isinstance(error, (AssertionError, UserError)) else f"{type(error).__name__}: {first}"
