"""One check of one component, and its result.

A check is a function `check_*(case)`. It returns None or a remark if the component satisfies its interface, and raises
AssertionError with a message of one line if not. DoesNotApply means that the interface asks nothing of this component.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from p2pzoo.plugin.loader import plugins
from p2pzoo.plugin.registry import Entry
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply, first_line
from p2pzoo.testing.plugin_module import build_plugin_case
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.suggest import did_you_mean

CheckStatus = Literal["pass", "fail", "expected failure", "does not apply"]
CheckFunction = Callable[[ComponentCase], str | None]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    message  why the component fails, why the check does not apply, why the failure is expected; or a remark
    error    the exception behind a failure
    """

    status: CheckStatus
    message: str = ""
    error: BaseException | None = field(default=None, repr=False)


@dataclass
class ComponentCheck:
    """One check of one component of a plugin.

    check_name        as users write it in `known_failures` and `expected_failures`
    expected_failure  the reason why this check is expected to fail, or None
    """

    entry: Entry
    check_name: str
    check: CheckFunction
    parameters: Mapping[str, Any]
    cases: dict[Entry, ComponentCase] = field(repr=False)
    expected_failure: str | None = None

    @property
    def component(self) -> str:
        return f"{self.entry.kind}.{self.entry.name}"

    def __str__(self) -> str:
        return f"{self.component}-{self.check_name}"

    def run(self) -> CheckResult:
        """Run the check. Every Exception becomes a result."""
        try:
            if self.entry not in self.cases:
                self.cases[self.entry] = ComponentCase.from_entry(self.entry, self.parameters)
            case = self.cases[self.entry]
        except DoesNotApply as error:
            return CheckResult("does not apply", str(error))
        except Exception as error:
            return CheckResult("fail", first_line(error), error)
        reason = self.expected_failure or case.known_failures.get(self.check_name)
        threads = torch.get_num_threads()
        try:
            remark = self.check(case)
        except DoesNotApply as error:
            return CheckResult("does not apply", str(error))
        except Exception as error:
            return CheckResult("expected failure", reason) if reason else CheckResult("fail", first_line(error), error)
        finally:
            torch.set_num_threads(threads)
        if reason:
            return CheckResult("fail", f"passes, but is declared as an expected failure ({reason}): remove that entry")
        return CheckResult("pass", remark or "")


def build_component_checks(
    plugin: str,
    checks: Mapping[str, Mapping[str, CheckFunction]],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[ComponentCheck]:
    """Every component of a plugin with every check of its kind.

    checks             {kind: {check name: function}}
    parameters         {component: {parameter: value}}
    expected_failures  {check, "component.check" or "kind.component.check": reason}

    A component is named as in recipes, or as "kind.name". Raises UserError if the plugin is not installed or does not
    load, for names that match nothing, and for an expected failure without a reason.
    """
    installed = next((each for each in plugins() if each.name == plugin), None)
    if installed is None:
        raise UserError(f"no plugin '{plugin}'{did_you_mean(plugin, [each.name for each in plugins()])}")
    if installed.error:
        raise UserError(f"plugin '{plugin}' does not load: {installed.error}")
    parameters, expected = dict(parameters or {}), dict(expected_failures or {})
    cases: dict[Entry, ComponentCase] = {}
    component_checks, used_names = [], set()
    plugin_entry, plugin_case = build_plugin_case(installed)
    cases[plugin_entry] = plugin_case
    entries = [entry for entry in installed.entries if entry.kind in checks]  # commands have no checks
    for entry in (plugin_entry, *entries):
        names = [name for name in (entry.name, f"{entry.kind}.{entry.name}") if name in parameters]
        used_names.update(names)
        values = {key: value for name in names for key, value in parameters[name].items()}
        for check_name, check in checks[entry.kind].items():
            full_names = [check_name, f"{entry.name}.{check_name}", f"{entry.kind}.{entry.name}.{check_name}"]
            matches = [name for name in full_names if name in expected]
            used_names.update(matches)
            reason = expected[matches[-1]] if matches else None  # the most specific name counts
            component_checks.append(ComponentCheck(entry, check_name, check, values, cases, reason))
    components = [name for entry in entries for name in (entry.name, f"{entry.kind}.{entry.name}")]
    for name in parameters.keys() - used_names:
        raise UserError(f"parameters: plugin '{plugin}' has no component '{name}'{did_you_mean(name, components)}")
    _validate_expected_failures(plugin, expected, used_names, component_checks)
    return component_checks


def _validate_expected_failures(
    plugin: str, expected: Mapping[str, str], used_names: set[str], component_checks: Sequence[ComponentCheck]
) -> None:
    known = dict.fromkeys(
        name for each in component_checks for name in (each.check_name, f"{each.component}.{each.check_name}")
    )
    for name in expected.keys() - used_names:
        suggestion = did_you_mean(name, [*known], names_to_list=())
        raise UserError(f"expected_failures: plugin '{plugin}' has no check '{name}'{suggestion}")
    for name, reason in expected.items():
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f"expected_failures: '{name}' needs a reason")
