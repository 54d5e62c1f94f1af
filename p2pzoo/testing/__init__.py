"""The conformance kit: the interface of each kind of component, as checks that plugin authors run.

    from p2pzoo.testing import conformance

    test_mine = conformance("my-plugin")      # pytest: one test per component and check

`p2pzoo check-plugin my-plugin` runs the same checks in a terminal. This package imports torch; only `conformance`
imports pytest, when it is called. It may import every other package of p2pzoo except cli.
"""

from p2pzoo.testing.component_case import ComponentCase, DoesNotApply
from p2pzoo.testing.component_check import CheckResult, ComponentCheck
from p2pzoo.testing.suite import CHECKS, conformance, list_component_checks

__all__ = [
    "CHECKS",
    "CheckResult",
    "ComponentCase",
    "ComponentCheck",
    "DoesNotApply",
    "conformance",
    "list_component_checks",
]
