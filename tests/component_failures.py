"""What the conformance kit says about a component, for tests of the kit; a loss and a metric that pass."""

import pytest

from p2pzoo.plugin.registry import Entry
from p2pzoo.testing import CHECKS, ComponentCase, DoesNotApply


class Distance:
    side = "generator"
    minimum = 0.0

    def __call__(self, out):
        return (out.y - out.y_hat).abs().mean()


class Error:
    version, better = "1", "lower"

    def __init__(self, dataset):
        pass

    def measure(self, batch, y_hat):
        return {"error": (batch.y - y_hat).abs().flatten(1).mean(1)}

    def reduce(self, statistics):
        return {"value": statistics["error"].mean().item()}


def case(kind, factory, *, needs=(), **parameters):
    return ComponentCase.from_entry(Entry(kind, "mine", factory, "mine", "mine 1.0", needs=needs), parameters)


def failures(kind, factory, *, needs=(), checks=None):
    """{check: message} of the checks that the component fails. checks: their names; None: all of the kind."""
    messages, its_case = {}, case(kind, factory, needs=needs)
    for name in checks or CHECKS[kind]:
        try:
            CHECKS[kind][name](its_case)
        except AssertionError as error:
            messages[name] = str(error)
        except DoesNotApply:
            continue
    return messages


def failure(kind, factory, check_name, *, needs=()):
    """The first line of the message of the check, which must fail."""
    with pytest.raises(AssertionError) as raised:
        CHECKS[kind][check_name](case(kind, factory, needs=needs))
    return str(raised.value).splitlines()[0]
