"""The plan: a recipe and a target resolved against the installed plugins, checked before a model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgesmith.errors import PluginError
from edgesmith.host.containment import call_plugin
from edgesmith.host.interfaces import Target
from edgesmith.host.records import MethodRecord, Needs, TargetRecord
from edgesmith.recipe import Recipe

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edgesmith.host.registry import Registry


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step with its validated options."""

    record: MethodRecord
    options: "BaseModel"
    distribution: str
    """Where the method comes from, as "name version"."""

    @property
    def needing(self) -> MethodRecord:
        """The record with what these very options need, where the options say so in a property `needs`.

        Raises:
            PluginError: That property crashes.
        """
        what = f"method {self.record.name} {self.record.version} from {self.distribution}: what its options need"
        module = type(self.options).__module__
        needs = call_plugin(lambda: getattr(self.options, "needs", None), what, PluginError, module=module)
        return replace(self.record, needs=needs) if isinstance(needs, Needs) else self.record

    @property
    def label(self) -> str:
        """What the ledger calls the stage that this step produces."""
        return self.record.name


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before work starts."""

    recipe: Recipe
    target_record: TargetRecord
    target: Target
    target_distribution: str
    steps: tuple[PlannedStep, ...]

    def require_needs(self, *, has_data: bool) -> None:
        """Raise unless everything that the steps and the target need is there.

        Args:
            has_data: Whether calibration data is given.

        Raises:
            RecipeError: Data or a GPU is missing.
            PluginError: A package is missing or out of range.
        """
        from edgesmith.host.needs import check_needs

        for step in self.steps:
            check_needs(step.needing, has_data=has_data)
        check_needs(self.target_record)


def make_plan(registry: "Registry", recipe: Recipe, target: str | None) -> Plan:
    """Resolve names, validate options, and check the order.

    Args:
        registry: The installed plugins.
        recipe: What to do.
        target: Target name, or a profile file that extends one; None takes the recipe's, or `onnx-cpu`.

    Raises:
        RecipeError: A method, option or order is wrong.
        PluginError: A name belongs to a broken plugin, or to two plugins.
        TargetError: A profile file is wrong.
    """
    from edgesmith.host.order import check_order
    from edgesmith.host.targets import find_target

    target_record, target_instance = find_target(registry, target or recipe.target or "onnx-cpu")
    steps = tuple(_plan_step(registry, step.method, step.options) for step in recipe.steps)
    registry.require(recipe.required_plugins)
    if recipe.metric is not None:
        registry.metric(recipe.metric)
    check_order(tuple(step.record for step in steps), registry)
    return Plan(
        recipe=recipe,
        target_record=target_record,
        target=target_instance,
        target_distribution=registry.distribution_of(target_record),
        steps=steps,
    )


def _plan_step(registry: "Registry", method: str, options: Mapping[str, object]) -> PlannedStep:
    record = registry.method(method)
    return PlannedStep(record, registry.validate_options(record, options), registry.distribution_of(record))


def unique_labels(labels: Sequence[str], reserved: Sequence[str] = ()) -> tuple[str, ...]:
    """Return `labels` with a count appended to repetitions and to `reserved` ones, so that each names one stage."""
    seen = dict.fromkeys(reserved, 1)
    result = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        result.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return tuple(result)
