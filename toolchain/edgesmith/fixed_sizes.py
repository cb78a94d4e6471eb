"""Which sizes the open dimensions of a run get, where the target or the user wants them fixed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgesmith.data import DataChoice, first_batch
from edgesmith.errors import TargetError
from edgesmith.frontends.fixed_dimensions import fix_dimensions, open_dimensions, text_lengths
from edgesmith.measure.machine import library_versions
from edgesmith.model import Model
from edgesmith.plan import Plan
from edgesmith.store import Store, make_key

if TYPE_CHECKING:
    import numpy as np


def fix_sizes(model: Model, plan: Plan, choice: DataChoice, *, batch_size: int, store: Store) -> Model:
    """Return `model` with the sizes of the recipe in its inputs, and all others fixed too where the target asks for it.

    Done before the first step, so that every stage has the same inputs. What the recipe does not name gets the batch
    size of the run in front, the length that texts are cut to, and else the sizes of the first sample of the data.
    Arrays for the graph have been cut already, so there the sample decides.

    Args:
        model: The source with its preprocessing.
        plan: Names sizes in its recipe, and the target.
        choice: The data of the run.
        batch_size: Samples per run.
        store: Keeps the result.

    Raises:
        ModelError: The recipe names a dimension that is not there.
        TargetError: The target asks for a size that nothing gives.
    """
    sizes = dict(plan.recipe.shapes)
    if plan.target.dialect.fixed_shapes:
        sizes |= _further_sizes(model, sizes, plan, choice, batch_size)
    if not sizes:
        return model
    key = make_key({"kind": "fixed", "input": model.digest(), "sizes": sizes, "versions": library_versions()})
    found = store.model(key) or store.keep_model(key, fix_dimensions(model, sizes), {})
    return found.model


def _further_sizes(
    model: Model, given: Mapping[str, int], plan: Plan, choice: DataChoice, batch_size: int
) -> dict[str, int]:
    dimensions = {name: place for name, place in open_dimensions(model.ir).items() if name not in given}
    chosen = {name: batch_size for name, (_, axis) in dimensions.items() if axis == 0}
    if not choice.is_prepared:
        chosen |= {name: length for name, length in text_lengths(model).items() if name in dimensions}
    missing = {name: place for name, place in dimensions.items() if name not in chosen}
    sample = _first_sample(model, choice) if missing else {}
    for name, (value, axis) in missing.items():
        if value not in sample or axis >= sample[value].ndim:
            raise TargetError(
                f"Dimension {name!r} of input {value!r} is open, and {plan.target_record.name} takes fixed sizes only.",
                expected="a size for every dimension of the inputs",
                why="The runtime plans its memory for one size before it runs.",
                fix=f"Add --shape {name}=SIZE, `shapes` to the recipe, or data whose first sample has that size.",
            )
        chosen[name] = int(sample[value].shape[axis])
    return chosen


def _first_sample(model: Model, choice: DataChoice) -> "Mapping[str, np.ndarray]":
    opened = choice.open(model)
    data = opened.evaluation or opened.calibration
    return {} if data is None else first_batch(data, 1).inputs
