"""What the conformance kit says about a component, for tests of the kit."""

import pytest

from p2pzoo.plugin.registry import Entry
from p2pzoo.testing import CHECKS, ComponentCase, DoesNotApply


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
