"""Every component keeps the promises of its kind. Parameters and known failures: see p2pzoo.testing."""

from p2pzoo.testing import conformance

test_plugin = conformance("my-zoo", parameters={"my-zoo": {"blocks": 1}})
