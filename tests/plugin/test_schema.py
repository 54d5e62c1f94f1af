"""A signature is a schema: the values that a recipe may give a component, and the errors of wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from p2pzoo.plugin import AddedLater, schema


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
        self.arguments = (in_channels, width)


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
def test_toml_values_are_converted_to_the_types_of_parameters(name, toml, expected):
    value = schema.check_params(Net, {name: toml})[name]
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
        ("betas", [0.5], "betas = [0.5]: give an array, [float, float]"),
        ("betas", [0.5, 0.9, 0.99], "betas = [0.5, 0.9, 0.99]: give an array, [float, float]"),
        ("betas", 0.5, "betas = 0.5: give an array, [float, float], such as [0.5, 0.5]"),
        ("wdith", 3, "has no parameter 'wdith': did you mean 'width'?"),
        ("in_channels", 3, "has no parameter 'in_channels'"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(name, toml, message):
    with pytest.raises(schema.InvalidParameters) as caught:
        schema.check_params(Net, {name: toml})
    [(parameter, text)] = caught.value.faults
    assert parameter == name
    assert text.startswith(message)


def test_all_faults_are_reported_at_once():
    with pytest.raises(schema.InvalidParameters) as caught:
        schema.check_params(Net, {"width": -1, "norm": 3, "colour": "red"})
    assert {name for name, _ in caught.value.faults} == {"width", "norm", "colour"}


def test_parameters_that_are_not_set_have_their_defaults():
    assert schema.check_params(Net, {"width": 8})["betas"] == (0.5, 0.999)


def test_a_required_parameter_must_be_set():
    def folders(split: str, *, inputs: Path) -> None: ...

    with pytest.raises(schema.InvalidParameters, match="needs the parameter 'inputs'"):
        schema.check_params(folders, {})


def test_a_factory_with_var_keywords_is_refused():
    def loose(**anything: int) -> None: ...

    with pytest.raises(TypeError, match=r"takes \*\*anything"):
        schema.check_params(loose, {})


def test_positional_arguments_are_filled_by_name_and_unknown_ones_refused():
    assert schema.call_factory(Net, {"size": (1, 1), "in_channels": 3}, {"width": 5}).arguments == (3, 5)
    with pytest.raises(TypeError, match="takes in_channels by position, but p2pzoo offers split"):
        schema.call_factory(Net, {"split": "train"}, {})


def test_dataclasses_are_factories_too():
    @dataclass(kw_only=True)
    class Settings:
        images: int
        rate: float = 1.0

    assert schema.check_params(Settings, {"images": 3}) == {"images": 3, "rate": 1.0}


def test_types_are_described_for_people():
    descriptions = {name: param.type_name for name, param in schema.get_params(Net).items()}
    assert descriptions == {
        "width": "int ≥ 1",
        "norm": '"batch" | "none"',
        "betas": "[float, float]",
        "root": "Path",
        "rate": "float",
        "fast": "bool",
        "depth": "int | unset",
    }


class Grown:
    def __init__(self, *, bias: Annotated[bool, AddedLater] = False, width: int = 64) -> None: ...


def test_a_run_id_leaves_out_the_default_of_a_parameter_that_was_added_later():
    assert schema.omit_added_later(Grown, {"bias": False, "width": 64}) == {"width": 64}
    assert schema.omit_added_later(Grown, {"bias": True, "width": 64}) == {"bias": True, "width": 64}


def test_values_are_shown_as_a_recipe_writes_them_and_shortened():
    assert schema.format_value({"a": (1, Path("b"))}) == '{"a": [1, "b"]}'
    assert schema.format_value(float("inf")) == "inf"
    assert len(schema.format_value("x" * 100)) == 60
    assert schema.format_value("x" * 100).endswith("...")
