"""The values that the conformance suite tries for an option."""

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, create_model

from edgesmith.host.options import option_schemas
from edgesmith.testing.conformance.options import edge_values, takes_anything, values_beyond, wrong_value


class Nested(BaseModel):
    text: str = ""


def schema_of(annotation: Any) -> dict[str, Any]:
    return option_schemas(create_model("Options", value=(annotation, ...)))["value"]


@pytest.mark.parametrize(
    ("annotation", "edges"),
    [
        (bool, [False, True]),
        (Literal["a", "b"], ["a", "b"]),
        (Literal["only"], ["only"]),
        (Annotated[int, Field(ge=1, le=8)], [1, 8]),
        (Annotated[int, Field(gt=1, lt=8)], [2, 7]),
        (Annotated[float, Field(gt=0, le=1)], [1, 0.001]),
        (Annotated[int, Field(ge=1)] | None, [1, None]),
        (tuple[Literal["x", "y"], ...], [[], ["x"], ["y"]]),
        (str, []),
        (float, []),
    ],
)
def test_edges_are_limits_and_choices(annotation, edges):
    assert edge_values(schema_of(annotation)) == edges


@pytest.mark.parametrize(
    "annotation",
    [
        bool,
        int,
        str,
        Literal["a", 2],
        Annotated[float, Field(gt=0, lt=1)],
        Annotated[int, Field(ge=-3, le=3)],
        int | None,
        tuple[str, ...],
        dict[str, int],
        Nested,
    ],
)
def test_edges_are_taken_and_values_beyond_and_of_another_type_are_not(annotation):
    schema, model = schema_of(annotation), create_model("Options", value=(annotation, ...))
    for value in edge_values(schema):
        model.model_validate({"value": value})
    for value in (*values_beyond(schema), wrong_value(schema)):
        with pytest.raises(ValidationError):
            model.model_validate({"value": value})


@given(low=st.integers(-5, 5), width=st.integers(2, 9), strict=st.booleans())
def test_edges_of_a_range_are_inside_and_beyond_is_outside(low, width, strict):
    limits = {"gt": low, "lt": low + width} if strict else {"ge": low, "le": low + width}
    schema = schema_of(Annotated[int, Field(**limits)])
    inside = range(low + strict, low + width + (not strict))
    assert all(value in inside for value in edge_values(schema))
    assert not any(value in inside for value in values_beyond(schema))
    assert len(values_beyond(schema)) == 2


def test_a_field_without_a_type_cannot_be_given_a_wrong_one():
    assert takes_anything(schema_of(Any))
    assert not takes_anything(schema_of(int | None))
