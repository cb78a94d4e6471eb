"""The three forms on whole graphs, run before and after."""

import edgesmith_ftwt
import numpy as np
import onnx_ir as ir
import pytest
from edgesmith_ftwt.blocks import find_blocks
from edgesmith_ftwt.gates import write_fewer
from edgesmith_ftwt.predictor import Predictor, features

from edgesmith import Model
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cost import count_cost
from edgesmith.graph.edit import GraphEditor
from edgesmith.testing import GraphBuilder, isolated_registry, run_method, tiny_bert, tiny_cnn, tiny_data

REGISTRY = isolated_registry(edgesmith_ftwt)
METHOD = "gate-channels"


def plain_cnn(*, opset: int = 20, dead: int = 0) -> Model:
    """Return three convolutions in a row, so that the second one's filters and inputs are both gated.

    Args:
        opset: Of the graph.
        dead: How many filters of the first convolution never respond.
    """
    builder = GraphBuilder(opset=opset, seed=3, image=("batch", 3, 12, 12))
    bias = np.zeros(12, np.float32)
    bias[:dead] = -1e3
    stem = builder.add("Conv", "image", builder.weight("stem.weight", 12, 3, 3, 3), builder.constant("stem.bias", bias))
    stem = builder.add("MaxPool", builder.add("Relu", stem), kernel_shape=[2, 2], strides=[2, 2])
    middle = builder.norm(builder.conv(stem, "middle", 12, 16, kernel=3), "middle.norm", 16)
    last = builder.add("Relu", builder.conv(builder.add("Relu", middle, name="act"), "last", 16, 8))
    pooled = builder.add("Flatten", builder.add("GlobalAveragePool", last))
    return tiny_cnn().with_ir(builder.finish(builder.linear(pooled, "head", 8, 4)))


MODELS = {"plain": plain_cnn, "depthwise": tiny_cnn}
FILTERS = {"plain": [12, 16], "depthwise": [32]}


def batch_of(model: Model, samples: int, seed: int = 0):
    return next(tiny_data(model, samples=samples, seed=seed).batches(samples)).inputs


def run(model: ir.Model, inputs, taps=()):
    return ReferenceSession(model, taps=taps).run(inputs)


def answer(model: Model, inputs):
    return run(model.ir, inputs)[str(model.graph.outputs[0].name)]


def gate(model: Model, **options):
    result = run_method(REGISTRY, METHOD, model, options, calibration=tiny_data(model, samples=24))
    assert result.verdict.status == "ok", result.verdict
    return result


def without(model: Model, kept) -> Model:
    """Return the model with the kept filters of each block, cut out by hand."""
    result = model.clone()
    editor = GraphEditor(result.graph)
    for block, places in zip(find_blocks(result.graph)[0], kept, strict=True):
        write_fewer(editor, block, places)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_blocks_reach_through_normalization_pooling_and_depthwise_convolutions(name):
    blocks, reasons = find_blocks(MODELS[name]().graph)
    assert [block.filters for block in blocks] == FILTERS[name]
    if name == "depthwise":
        assert [node.op_type for node in blocks[0].depthwise] == ["Conv"]
        # The stem's channels go into a residual sum too.
        assert any("others read" in reason for reason in reasons.values())
        assert any("in groups" in reason for reason in reasons.values())


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_masks_in_the_graph_are_those_of_the_predictors(name, pool, softmax):
    model = MODELS[name]()
    masked = gate(model, form="masked", mass=0.7, pool=pool, softmax=softmax).model
    inputs = batch_of(model, 9, seed=1)
    blocks = find_blocks(model.graph)[0]
    values = [str(value.name) for block in blocks for value in (block.source, block.gated)]
    values += [f"{block.name}_{part}_output" for block in blocks for part in ("mask", "gated")]
    found = inputs | run(masked.ir, inputs, [value for value in dict.fromkeys(values) if value not in inputs])
    # Where a gate stands before a block, its predictor sees what that gate lets through.
    masks = {str(block.gated.name): f"{block.name}_gated_output" for block in blocks}
    for block in blocks:
        source = found[masks.get(str(block.source.name), str(block.source.name))]
        seen = source.max(axis=(2, 3)) if pool == "max" else source.mean(axis=(2, 3))
        parts = (masked.graph.initializers[f"{block.name}_predictor{end}"] for end in ("", "_bias"))
        weight, bias = (part.const_value.numpy() for part in parts)
        predictor = Predictor(weight[:, :, 0, 0], bias, 1.0, 1.0)
        mask = found[f"{block.name}_mask_output"][:, :, 0, 0]
        np.testing.assert_array_equal(mask, predictor.chosen(features(seen, softmax=softmax)))
        expected = found[str(block.gated.name)] * mask[:, :, None, None]
        np.testing.assert_array_equal(found[f"{block.name}_gated_output"], expected)
        assert 0 < mask.mean() < 1


@pytest.mark.parametrize("name", MODELS)
def test_gathered_filters_give_what_the_network_cut_to_them_gives(name):
    model = MODELS[name]()
    gathered = gate(model, form="gathered", choose="share", share=0.4, multiple=1).model
    blocks = find_blocks(model.graph)[0]
    taps = [f"{block.name}_order_output" for block in blocks]
    several = set()
    for seed in range(6):
        inputs = batch_of(model, 1, seed=seed)
        found = run(gathered.ir, inputs, taps)
        chosen = [found[tap] for tap in taps]
        assert [len(each) for each in chosen] == [round(0.4 * block.filters) for block in blocks]
        assert all((np.diff(each) > 0).all() for each in chosen)
        several.add(tuple(map(tuple, chosen)))
        np.testing.assert_allclose(
            answer(gathered, inputs), answer(without(model, chosen), inputs), rtol=1e-5, atol=1e-6
        )
    assert len(several) > 1, "images choose filters of their own"


def test_a_batch_agrees_on_its_filters():
    model = plain_cnn()
    gathered = gate(model, form="gathered", mass=0.6, multiple=4).model
    one = batch_of(model, 1, seed=4)
    three = {name: np.repeat(array, 3, axis=0) for name, array in one.items()}
    np.testing.assert_allclose(
        answer(gathered, three), np.repeat(answer(gathered, one), 3, axis=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("form", ["masked", "gathered", "static"])
def test_shapes_depend_on_the_batch_alone(form):
    model = gate(plain_cnn(), form=form, mass=0.6, multiple=4).model
    assert not {node.op_type for node in model.graph} & {"NonZero", "Compress", "If", "Loop", "Unique"}
    shapes = [
        {name: array.shape[1:] for name, array in run(model.ir, batch_of(model, 2, seed=seed)).items()}
        for seed in range(3)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_filters_that_no_image_needs_go_without_a_trace():
    model = plain_cnn(dead=5)
    result = gate(model, form="static", mass=1.0, needed_by=0.01, multiple=1)
    inputs = batch_of(model, 24)
    np.testing.assert_allclose(answer(result.model, inputs), answer(model, inputs), rtol=1e-4, atol=1e-5)
    assert result.model.graph.initializers["stem.weight_kept"].shape[0] == 7
    assert count_cost(result.model.ir).macs < 0.7 * count_cost(model.ir).macs


@pytest.mark.parametrize(("multiple", "stays"), [(1, 7), (4, 8), (5, 10), (16, 12)])
def test_widths_are_rounded_up_to_what_kernels_like(multiple, stays):
    model = plain_cnn(dead=5)
    result = gate(model, form="static", mass=1.0, needed_by=0.01, multiple=multiple).model
    widths = {name: value.shape[0] for name, value in result.graph.initializers.items() if name.startswith("stem.w")}
    assert widths == ({"stem.weight_kept": stays} if stays < 12 else {"stem.weight": 12})
    # The five that never respond go first.
    kept = result.graph.initializers.get("stem.bias_kept", result.graph.initializers.get("stem.bias"))
    assert (kept.const_value.numpy() == 0).sum() == 7


def test_masks_cost_work_and_the_report_says_so():
    model = tiny_cnn()
    result = gate(model, form="masked", mass=0.5)
    assert count_cost(result.model.ir).macs > count_cost(model.ir).macs
    assert "Masks save no time" in result.notes.remarks[-1]
    assert "decisions on images held out were right" in result.notes.remarks[0]
    fewer = gate(model, form="gathered", mass=0.5, multiple=8)
    assert "Masks save no time" not in " ".join(fewer.notes.remarks)


def test_what_every_image_needs_stays():
    result = gate(tiny_cnn(), form="static", needed_by=0.0)
    assert result.model.digest() == tiny_cnn().digest()
    assert set(result.notes.skipped.values()) >= {"each filter is needed often enough"}


def test_it_refuses_what_it_cannot_do():
    old = plain_cnn(opset=12)
    assert "export it anew" in run_method(REGISTRY, METHOD, old, calibration=tiny_data(old)).verdict.reason
    refused = run_method(REGISTRY, METHOD, tiny_cnn()).verdict
    assert refused.status == "refuse" and "pass some" in refused.reason
    assert run_method(REGISTRY, METHOD, tiny_bert(), calibration=tiny_data(tiny_bert())).verdict.status == "skip"


def test_weights_that_others_read_and_named_nodes_are_left_alone():
    model = plain_cnn()
    graph = model.clone().graph
    graph.append(ir.node("Neg", [graph.initializers["stem.weight"]], name="other"))
    blocks, reasons = find_blocks(graph)
    assert [block.filters for block in blocks] == [16]
    assert "others read stem.weight too" in reasons.values()
    name = blocks[0].name
    assert find_blocks(graph, (name,))[1][name] == "it is named in `skip`"
