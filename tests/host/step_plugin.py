"""A plugin file whose methods behave as their options say."""

import random
from typing import Literal

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl

SEEN: list[str] = []


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(default=1.0, gt=0, description="Factor on the weights of the second layer.")
    verdict: Literal["ok", "skip", "refuse"] = "ok"
    interrupt: Literal["never", "check", "apply"] = "never"
    reshape: bool = False


@hookimpl
def register_methods():
    common = {"version": "1.0", "kind": Kind.GRAPH, "options": "step_plugin:Options", "entry": "step_plugin:Scale"}
    return [
        MethodRecord(name="scale", summary="Scales.", guarantee=Guarantee.LOSSY, **common),
        MethodRecord(name="scale-exactly", summary="Scales.", guarantee=Guarantee.EXACT, **common),
        MethodRecord(name="scale-a-bit", summary="Scales.", guarantee=Guarantee.TOLERANCE, tolerance=0.1, **common),
        MethodRecord(
            name="add-noise",
            summary="Adds noise from the global generators.",
            guarantee=Guarantee.LOSSY,
            **{**common, "entry": "step_plugin:AddNoise"},
        ),
    ]


@hookimpl
def before_step(event):
    SEEN.append(f"before {event.index} {event.method} {event.seconds}")


@hookimpl
def after_step(event):
    SEEN.append(f"after {event.index} {event.method} {event.status} {event.seconds > 0}")


@hookimpl
def on_step_error(error, event):
    SEEN.append(f"error {event.index} {event.options['factor']} {error.what}")


def rescaled(model, change):
    result = model.clone()
    for name in ("down", "down_bias"):
        value = result.graph.initializers[name]
        value.const_value = ir.tensor(change(value.const_value.numpy()), name=name)
    return result


class Scale(Method[Options]):
    def check(self, model, context):
        if context.options.interrupt == "check":
            raise KeyboardInterrupt
        return Verdict(context.options.verdict, "as asked" if context.options.verdict != "skip" else "")

    def apply(self, model, context):
        if context.options.interrupt == "apply":
            raise KeyboardInterrupt
        result = rescaled(model, lambda array: array * np.float32(context.options.factor))
        if context.options.reshape:
            node = ir.node("Concat", [result.graph.outputs[0]] * 2, {"axis": 1}, name="twice")
            node.outputs[0].type, node.outputs[0].shape = result.graph.outputs[0].type, ir.Shape(["batch", 8])
            result.graph.outputs[0].name, node.outputs[0].name = "y_half", "y"
            result.graph.append(node)
            result.graph.outputs[0] = node.outputs[0]
        return result


class AddNoise(Method[Options]):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        return rescaled(
            model, lambda array: (array + np.random.standard_normal(array.shape) + random.random()).astype(np.float32)
        )
