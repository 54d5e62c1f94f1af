"""Descriptions of parameters: pydantic's Field, else a line of a docstring."""

import inspect
import textwrap
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from p2pzoo.plugin.descriptions import describe_parameters, docstring_without

words = st.lists(st.text("abcXYZ019.,;:()\"'=-→√²", min_size=1, max_size=12), min_size=1, max_size=30)
prose = st.sampled_from(
    ["", "Prose of one line.", "Prose (B, C, H, W)\nof two lines.", "width is even, low too.", ">>> f(width=3)\n3"]
)


@st.composite
def tables(draw):
    """(text of a table in the house form, {name: description})"""
    unused = draw(st.permutations(["width", "depth", "norm", "low", "high", "x_range", "k"]))
    entries, expected = [], {}
    column = draw(st.integers(9, 24))
    while unused and draw(st.booleans()):
        group = [unused.pop() for _ in range(min(len(unused), draw(st.integers(1, 3))))]
        text = draw(words)
        label = ", ".join(group)
        indent = " " * max(column, len(label) + 2)
        width = len(indent) + draw(st.integers(12, 80))
        lines = textwrap.wrap(" ".join(text), width, initial_indent=label.ljust(len(indent)), subsequent_indent=indent,
                              break_long_words=False, break_on_hyphens=False)  # fmt: skip
        entries.append("\n".join(lines))
        expected.update(dict.fromkeys(group, " ".join(text)))
    return "\n".join(entries), expected


def build_class(doc, init_doc=None, base=object):
    class Component(base):
        def __init__(self, x=0, *, width=1, depth=1, norm=1, low=1, high=1, x_range=1, k=1): ...

    Component.__doc__, Component.__init__.__doc__ = doc, init_doc
    return Component


PARAMETERS = ("width", "depth", "norm", "low", "high", "x_range", "k")


@given(table=tables(), before=prose, after=prose, indent=st.sampled_from(["", "    "]), place=st.integers(0, 3))
def test_every_table_in_the_house_form_is_read(table, before, after, indent, place):
    text, expected = table
    doc = "The first line.\n\n" + textwrap.indent("\n\n".join(filter(None, (before, text, after))), indent)
    if place == 0:
        factory = build_class(doc)
    elif place == 1:
        factory = build_class(None, init_doc=doc)
    elif place == 2:
        factory = build_class("The subclass.", base=build_class(doc))
    else:

        def factory(x=0, *, width=1, depth=1, norm=1, low=1, high=1, x_range=1, k=1): ...

        factory.__doc__ = doc
    assert describe_parameters(factory) == dict.fromkeys(PARAMETERS, "") | expected


@given(table=tables(), before=prose, after=prose)
def test_the_docstring_without_its_table_keeps_the_rest(table, before, after):
    text, _ = table
    parts = ["The first line.", before, text, after]
    factory = build_class("\n\n".join(filter(None, parts)))
    rest = docstring_without(factory, describe_parameters(factory))
    assert rest == "\n\n".join(filter(None, ["The first line.", before, after]))


def test_entries_that_the_table_does_not_repeat_stay_in_the_docstring():
    class Dataset:
        """Pairs.

        split  "train", "val" or "test"
        size   side in px
        """

        def __init__(self, split, *, size: Annotated[int, Field(description="side of the images")] = 256): ...

    descriptions = describe_parameters(Dataset)
    assert descriptions == {"size": "side of the images"}
    assert docstring_without(Dataset, descriptions) == inspect.getdoc(Dataset)


def test_the_order_is_annotation_then_class_then_init_then_base_class():
    class Base:
        """width   of the base
        depth   of the base
        norm    of the base
        low     of the base
        """

    class Component(Base):
        """norm    of the class
        depth   of the class
        """

        def __init__(
            self, *, width: Annotated[int, Field(ge=1, description="of the\n  field")] = 1, depth=1, norm=1, low=1, k=1
        ):
            """norm  of init
            k     of init
            """

    assert describe_parameters(Component) == {
        "width": "of the field", "depth": "of the class", "norm": "of the class", "low": "of the base", "k": "of init",
    }  # fmt: skip


def test_fields_of_a_dataclass_and_members_of_a_union_have_descriptions():
    @dataclass(kw_only=True)
    class Settings:
        """[settings]: of something.

        rate  the learning rate
        """

        rate: float = 1.0
        clip: Annotated[float, Field(gt=0, description="largest norm")] | None = None

    assert describe_parameters(Settings) == {"rate": "the learning rate", "clip": "largest norm"}


def test_a_factory_without_a_docstring_has_empty_descriptions():
    def factory(*, width=1): ...

    assert describe_parameters(factory) == {"width": ""}
    assert docstring_without(factory, {"width": ""}) == ""


def test_parameters_that_cannot_be_read_are_an_error():
    def factory(**options): ...

    with pytest.raises(TypeError, match="options"):
        describe_parameters(factory)
