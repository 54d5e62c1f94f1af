"""The conformance kit: what each kind of component promises, as checks that plugin authors run.

    from p2pzoo.testing import conformance

    test_mine = conformance("my-plugin")      # pytest: one test per component and check

The same from a terminal: `p2pzoo check-plugin my-plugin`. Imports torch; pytest only where `conformance` is called.
"""

from p2pzoo.testing.kit import Case, DoesNotApply, Finding, Trial
from p2pzoo.testing.suite import CHECKS, conformance, trials_of

__all__ = ["CHECKS", "Case", "DoesNotApply", "Finding", "Trial", "conformance", "trials_of"]
