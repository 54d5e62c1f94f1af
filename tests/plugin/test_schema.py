"""A signature is a schema: what recipes may give a component, and what wrong values are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from p2pzoo.plugin import schema


class Net:
    def __init__(
        self,
        in_channels: int,
        *,
        width: Annotated[int, Field(ge=1)] = 64,
        norm: Literal["batch", "none"] = "batch",
        betas: tuple[float, float] = (0.5, 0.999),
        root: Path = Path("data"),
        rate: float = 0.1,
        fast: bool = False,
        depth: int | None = None,
    ) -> None:
        self.given = (in_channels, width)


@pytest.mark.parametrize(
    ("name", "toml", "expected"),
    [
        ("betas", [0.9, 0.99], (0.9, 0.99)),
        ("root", "elsewhere", Path("elsewhere")),
        ("rate", 1, 1.0),
        ("depth", 3, 3),
        ("norm", "none", "none"),
        ("fast", True, True),
    ],
)
def test_toml_values_become_the_parameters_own_types(name, toml, expected):
    value = schema.check(Net, {name: toml})[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "toml", "message"),
    [
        ("width", "64", 'width = "64": input should be a valid integer'),
        ("width", True, "width = true: input should be a valid integer"),
        ("width", 1.5, "width = 1.5: input should be a valid integer"),
        ("width", 0, "width = 0: input should be greater than or equal to 1"),
        ("rate", "fast", 'rate = "fast": input should be a valid number'),
        ("rate", True, "rate = true: input should be a valid number"),
        ("fast", 1, "fast = 1: input should be a valid boolean"),
        ("norm", "layer", "norm = \"layer\": input should be 'batch' or 'none'"),
        ("betas", [0.5, "x"], 'betas = [0.5, "x"]: [1] input should be a valid number'),
        ("wdith", 3, "has no parameter 'wdith': did you mean 'width'?"),
        ("in_channels", 3, "has no parameter 'in_channels'"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(name, toml, message):
    with pytest.raises(schema.Faults) as caught:
        schema.check(Net, {name: toml})
    [(parameter, text)] = caught.value.faults
    assert parameter == name
    assert text.startswith(message)


def test_all_faults_are_told_at_once():
    with pytest.raises(schema.Faults) as caught:
        schema.check(Net, {"width": -1, "norm": 3, "colour": "red"})
    assert {name for name, _ in caught.value.faults} == {"width", "norm", "colour"}


def test_defaults_fill_what_is_not_given():
    assert schema.check(Net, {"width": 8})["betas"] == (0.5, 0.999)


def test_a_required_parameter_must_be_given():
    def folders(split: str, *, inputs: Path) -> None: ...

    with pytest.raises(schema.Faults, match="lacks its parameter 'inputs'"):
        schema.check(folders, {})


def test_a_factory_that_swallows_names_is_refused():
    def loose(**anything: int) -> None: ...

    with pytest.raises(TypeError, match=r"takes \*\*anything"):
        schema.check(loose, {})


def test_the_zoo_fills_positional_arguments_by_name_and_refuses_what_it_does_not_have():
    assert schema.call_factory(Net, {"size": (1, 1), "in_channels": 3}, {"width": 5}).given == (3, 5)
    with pytest.raises(TypeError, match="asks the zoo for in_channels; offered are split"):
        schema.call_factory(Net, {"split": "train"}, {})


def test_dataclasses_are_factories_too():
    @dataclass(kw_only=True)
    class Settings:
        images: int
        rate: float = 1.0

    assert schema.check(Settings, {"images": 3}) == {"images": 3, "rate": 1.0}


def test_types_read_as_a_person_would_write_them():
    described = {name: param.type_name for name, param in schema.params_of(Net).items()}
    assert described == {
        "width": "int ≥ 1",
        "norm": '"batch" | "none"',
        "betas": "[float, float]",
        "root": "Path",
        "rate": "float",
        "fast": "bool",
        "depth": "int | unset",
    }
