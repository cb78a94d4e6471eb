"""The artifact's own validator and what runs on a device go by one fact: for which runtime the graph is."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgesmith import artifact_validator
from edgesmith.device.shipment import read_shipment
from edgesmith.files import hash_file
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from small_graphs import graph, node

TARGETS = {"onnx-cpu": False, "android-cpu": False, "ios-coreml": False, "android-qnn": True, "jetson-orin-nano": True}
"""Target to whether its graph is for another runtime than ONNX Runtime with its default options."""


def artifact_for(name: str, folder: Path) -> dict[str, object]:
    """Write what target `name` builds as an artifact with one sample, and return its manifest."""
    _, target = find_target(load_registry(), name)
    build = target.build(graph([node("Relu", ["x"], "y")], {}, {"x": [1, 4]}), folder)
    files = {path.name: {"sha256": hash_file(path), "size_bytes": path.stat().st_size} for path in folder.iterdir()}
    manifest = {"format": 1, "entry": build.entry, "target": name, "build": dict(build.recipe), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    x = np.ones((1, 4), np.float32)
    np.savez(folder / "samples.npz", **{"input/x": x, "output/y": x})
    return manifest


@pytest.mark.parametrize("name", TARGETS)
def test_all_decide_alike_for_which_runtime_a_graph_is(name, tmp_path, monkeypatch):
    manifest, seen = artifact_for(name, tmp_path), []
    session = onnxruntime.InferenceSession

    def watched(path, options, **arguments):
        seen.append(arguments["disabled_optimizers"])
        return session(path, options, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    assert artifact_validator._compare(tmp_path, manifest) == {"y": 0}
    assert read_shipment(tmp_path).as_written == bool(seen[0]) == TARGETS[name]
    # A compile with the device's times asks the target itself, before anything is built.
    assert find_target(load_registry(), name)[1].for_onnx_runtime != TARGETS[name]
