"""prune-structure on convolutional networks: residuals, depthwise and grouped convolutions."""

import numpy as np
import pytest
import torch
from pruning_networks import IMAGE, NETWORKS

from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.torch_module import TorchModuleFrontend
from edgesmith.graph.cost import count_cost
from edgesmith.host.context import Context
from edgesmith_calibration.sources import ArraySource
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.prune_structure import PruneStructure
from edgesmith_pruning.pruning import Pruning
from models import cached_model, randomize
from small_graphs import SIGNED


def photos(count, seed=0):
    """Smooth random images: neighbouring places are alike, as in photos."""
    coarse = np.random.default_rng(seed).standard_normal((count, IMAGE[0], 4, 4)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, 4, 4), np.float32))


@pytest.fixture(params=sorted(NETWORKS))
def network(request):
    def build():
        torch.manual_seed(0)
        module = NETWORKS[request.param]()
        randomize(module)
        return TorchModuleFrontend().load(module.eval(), example_inputs={"input": torch.from_numpy(photos(2))})

    return cached_model(f"pruning-{request.param}", build)


def prune(model, folder, **options):
    data = ArraySource({"input": photos(16)})
    context = Context(PruneStructureOptions(**{"alignment": 1, **options}), SIGNED, folder, data, seed=3)
    verdict = PruneStructure().check(model, context)
    assert verdict.status == "ok", verdict.reason
    return PruneStructure().apply(model, context), context.notes


def outputs(model, images):
    return next(iter(ReferenceSession(model.ir).run({"input": images}).values()))


def distance(first, second, images):
    return float(np.square(outputs(first, images) - outputs(second, images)).sum())


def macs(model):
    return count_cost(model.ir, {"batch": 1}).macs


def test_a_refit_brings_the_outputs_nearer_on_photos_it_saw_and_others(network, tmp_path):
    pruned = {
        refit: prune(network, tmp_path, ratio=0.3, score="magnitude", refit=refit)[0]
        for refit in ("none", "least-squares")
    }
    for seed in (0, 1):
        errors = {refit: distance(network, model, photos(16, seed)) for refit, model in pruned.items()}
        assert errors["least-squares"] < errors["none"]


@pytest.mark.parametrize("allocation", ["uniform", "global", "measured"])
def test_a_budget_of_macs_is_met_and_the_network_runs(network, tmp_path, allocation):
    pruned, _ = prune(network, tmp_path, ratio=0.2, budget="macs", allocation=allocation)
    assert macs(pruned) <= 0.8 * macs(network)
    assert np.isfinite(outputs(pruned, photos(3))).all()
    assert outputs(pruned, photos(3)).shape == outputs(network, photos(3)).shape


def test_channels_that_hold_nothing_go_first_and_cost_nothing(tmp_path):
    torch.manual_seed(0)
    module = NETWORKS["inverted"]().eval()
    randomize(module)
    with torch.no_grad():
        body = module[2].body
        body[6].weight[:, ::3] = 0
    model = TorchModuleFrontend().load(module, example_inputs={"input": torch.from_numpy(photos(2))})
    pruned, _ = prune(model, tmp_path, ratio=0.02, budget="macs", allocation="measured")
    images = photos(4, seed=2)
    # Only channels that nothing reads went, so what is left are other orders of float32 sums.
    np.testing.assert_allclose(outputs(pruned, images), outputs(model, images), atol=1e-4)


def test_pruning_again_gives_the_same_bits(network, tmp_path):
    first, _ = prune(network, tmp_path, ratio=0.25, allocation="measured", budget="macs")
    second, _ = prune(network, tmp_path, ratio=0.25, allocation="measured", budget="macs")
    assert np.array_equal(outputs(first, photos(2)), outputs(second, photos(2)))


@pytest.mark.parametrize("direction", ["out_over_in", "in_over_out"])
def test_beta_rank_prunes_any_of_them(network, tmp_path, direction):
    pruned, _ = prune(network, tmp_path, ratio=0.25, score="beta-rank", beta_direction=direction)
    assert macs(pruned) < macs(network)
    assert np.isfinite(outputs(pruned, photos(3))).all()


def test_beta_rank_lets_filters_that_never_vary_go_first(tmp_path):
    torch.manual_seed(0)
    module = NETWORKS["inverted"]().eval()
    with torch.no_grad():
        body = module[2].body
        for layer in (body[0], body[3]):
            layer.weight[::4] *= 1e-3
    model = TorchModuleFrontend().load(module, example_inputs={"input": torch.from_numpy(photos(2))})
    before = {value.name: value.const_value.numpy() for value in model.graph.initializers.values()}
    pruned, _ = prune(model, tmp_path, ratio=0.25, score="beta-rank", refit="none")
    depthwise = next(name for name, array in before.items() if array.shape == (24, 1, 3, 3))
    after = pruned.graph.initializers[depthwise].const_value.numpy()
    assert np.array_equal(after, np.delete(before[depthwise], np.s_[::4], axis=0))


def test_a_repair_never_raises_the_calibration_error_of_a_layer(network, tmp_path):
    options = PruneStructureOptions(ratio=0.3, alignment=1, score="magnitude")
    context = Context(options, SIGNED, tmp_path, ArraySource({"input": photos(16)}))
    pruning = Pruning(network, context)
    pruning.run()
    assert pruning.outcomes
    assert all(outcome.repaired <= outcome.dropped for outcome in pruning.outcomes)


def test_statistics_are_kept_where_that_is_asked_for(network, tmp_path):
    options = PruneStructureOptions(ratio=0.3, alignment=1, score="magnitude", refit="statistics", sequential=False)
    pruning = Pruning(network, Context(options, SIGNED, tmp_path, ArraySource({"input": photos(16)})))
    pruning.run()
    taken = [outcome.layer for outcome in pruning.outcomes if outcome.repair == "statistics"]
    assert taken
    first = min(taken, key=[node.outputs[0].name for node in network.graph].index)
    dense, now = (
        ReferenceSession(model, taps=[first]).run({"input": photos(16)})[first]
        for model in (network.ir, pruning.working)
    )
    # Each weight and bias is rounded to float32, and sums of tens of them are compared.
    np.testing.assert_allclose(now.mean(axis=(0, 2, 3)), dense.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(now.std(axis=(0, 2, 3)), dense.std(axis=(0, 2, 3)), rtol=1e-4)


def test_a_layer_with_fewer_rows_than_inputs_stays_whole_where_costs_are_measured(tmp_path):
    torch.manual_seed(0)
    head = [torch.nn.Conv2d(8, 40, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), *head, torch.nn.Linear(40, 5))
    model = TorchModuleFrontend().load(module.eval(), example_inputs={"input": torch.from_numpy(photos(2))})
    pruned, notes = prune(model, tmp_path, ratio=0.2, budget="macs", allocation="measured")
    shapes = [value.shape for value in pruned.graph.initializers.values()]
    assert any(40 in shape for shape in shapes)
    assert any("12 rows to fit 40 inputs" in reason for reason in notes.skipped.values())
