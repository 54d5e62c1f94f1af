"""Misspelt names get the most similar known name, or a list."""

import pytest

from p2pzoo.utils.suggest import did_you_mean


@pytest.mark.parametrize(
    ("known", "names_to_list", "expected"),
    [
        (["unet", "resnet9"], None, ": did you mean 'unet'?"),
        (["spade", "resnet9"], None, ": known are resnet9, spade"),
        (["spade", "my:spade"], ["spade"], ": known are spade"),
        (["unet"], ["spade"], ": did you mean 'unet'?"),
        ([], None, ": none is installed"),
        (["spade"], (), ": none is installed"),
    ],
)
def test_an_unknown_name_is_answered(known, names_to_list, expected):
    assert did_you_mean("unett", known, names_to_list) == expected
