"""prune-structure end to end on whole models: what goes, what stays, and what a refit brings."""

from pathlib import Path

import numpy as np
import pytest

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.context import Context
from edgesmith_calibration.sources import ArraySource
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.prune_structure import PruneStructure
from small_graphs import SIGNED

FAMILIES = ("tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_dinov2")


def data_of(model, samples=32, seed=0):
    dimensions = {value.shape[0].value: samples for value in model.graph.inputs if value.shape[0]}
    return ArraySource(sample_inputs(model.ir, seed=seed, dimensions=dimensions))


def prune(model, folder: Path, data=None, **options):
    context = Context(PruneStructureOptions(**options), SIGNED, folder, data or data_of(model), seed=3)
    verdict = PruneStructure().check(model, context)
    assert verdict.status == "ok", verdict.reason
    return PruneStructure().apply(model, context)


def distance(first, second, inputs) -> float:
    results = [list(ReferenceSession(each.ir).run(inputs).values()) for each in (first, second)]
    return sum(float(np.square(a - b).sum()) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_refits_bring_outputs_nearer(name, request, tmp_path):
    model = request.getfixturevalue(name)
    (batch,) = data_of(model, seed=1).batches(32)
    errors = {
        refit: distance(model, prune(model, tmp_path, score="magnitude", refit=refit), batch.inputs)
        for refit in ("none", "least-squares")
    }
    assert errors["least-squares"] < 0.9 * errors["none"]
