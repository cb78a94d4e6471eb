import numpy as np
import onnx
import onnx_ir as ir

from edgesmith.host.building import build_files
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith.measure.size import measure_size
from edgesmith.testing import tiny_mlp


def test_weights_that_no_node_reads_count_in_no_stage(tmp_path):
    record, target = find_target(load_registry(plugins=False), "onnx-cpu")
    model, padded = tiny_mlp(), tiny_mlp()
    unread = ir.Value(name="unread", const_value=ir.tensor(np.zeros((100, 100), np.float32), name="unread"))
    padded.graph.register_initializer(unread)
    sizes = []
    for name, one in {"plain": model, "padded": padded}.items():
        (tmp_path / name).mkdir()
        entry = tmp_path / name / build_files(record, target, one, tmp_path / name).entry
        assert "unread" not in {tensor.name for tensor in onnx.load(entry).graph.initializer}
        sizes.append(measure_size(entry).file_bytes)
    assert sizes[0] == sizes[1]
    assert "unread" in padded.graph.initializers
