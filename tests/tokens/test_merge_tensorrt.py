"""Merged tokens through NVIDIA's own compiler, which needs no GPU."""

import pytest
from tests.tokens.aggregate_networks import aggregate, vision
from tests.tokens.merge_models import merge

from edgesmith.errors import TargetError
from edgesmith.host.context import Context
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt import gate

pytestmark = pytest.mark.skipif(
    not any(map(gate._is_installed, gate.COMPILERS)),
    reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
)


def lowered(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    _, target = find_target(load_registry(), "rtx-40")
    used = Context(None, target.dialect, tmp_path)
    return target.lower(model, used), used.notes.remarks


def test_merges_and_all_tokens_back_are_built_for_a_card(tiny_dinov2, tmp_path, monkeypatch):
    _, remarks = lowered(merge(tiny_dinov2, r=3), tmp_path, monkeypatch)
    assert any("parsed and built" in remark for remark in remarks)


@pytest.mark.slow
def test_merges_behind_a_pyramid_are_built_for_a_card(tmp_path, monkeypatch):
    pyramid = aggregate(vision(blocks=3, head="tokens"), form="attention-guided", at=(1,))
    _, remarks = lowered(merge(pyramid, r=1), tmp_path, monkeypatch)
    assert any("parsed and built" in remark for remark in remarks)


def test_sums_by_scattering_are_rejected(tiny_vit, tmp_path, monkeypatch):
    with pytest.raises(TargetError, match="reduction"):
        lowered(merge(tiny_vit, r=3, form="scatter"), tmp_path, monkeypatch)
