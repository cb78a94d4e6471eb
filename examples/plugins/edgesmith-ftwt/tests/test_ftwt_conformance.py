"""Everything that the host and its users rely on, tried on tiny models of every family."""

import edgesmith_ftwt
import pytest

from edgesmith.testing import conformance, isolated_registry


@pytest.mark.parametrize("check", conformance(isolated_registry(edgesmith_ftwt), thorough=False), ids=str)
def test_it_conforms(check):
    result = check()
    assert result.status != "failed", result
