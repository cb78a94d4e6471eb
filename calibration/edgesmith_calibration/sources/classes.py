"""Class names to the indices that a model's outputs have."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith_calibration.errors import DataError

_LISTED = 100


def class_indices(names: Sequence[str], classes: Sequence[str], description: str) -> NDArray[np.int64]:
    """Return the class index of each name.

    Args:
        names: One per sample.
        classes: Class names in the order of the outputs. Empty: names that are all integers are the indices
            themselves, and others are refused.
        description: The source, for errors.

    Raises:
        DataError: A name is empty or not among the classes, or there are no classes to number names with.
    """
    if "" in names:
        raise DataError(
            f"sample {list(names).index('')} of {description} has an empty label",
            expected="a label for every sample",
            why="a sample without a label cannot be scored",
            fix="fill in the label or remove the sample",
        )
    # A model may name its classes "0", "1", ...; then both readings agree or the names decide.
    if not set(names) <= set(classes) and all(_is_index(name) for name in names):
        return np.array([int(name) for name in names], np.int64)
    if not classes:
        raise _unnumbered(sorted(set(names)), description)
    order = {name: index for index, name in enumerate(classes)}
    for name in names:
        if name not in order:
            raise DataError(
                f"the label '{name}' of {description} is not a class of the model",
                expected=f"one of {', '.join(list(order)[:8])}{', ...' if len(order) > 8 else ''}",
                why="the score compares the index of the highest output with the index of the label",
                fix="correct the label, or list the classes in the order of the model's outputs",
            )
    return np.array([order[name] for name in names], np.int64)


def _unnumbered(names: Sequence[str], description: str) -> DataError:
    # JSON quotes what YAML would read as something else than a text, such as no.
    listed = json.dumps(names[:_LISTED], ensure_ascii=False)
    rest = f" and the other {len(names) - _LISTED}" if len(names) > _LISTED else ""
    return DataError(
        f"the labels of {description} are names, and the model does not say which output is which",
        expected="class names in the order of the model's outputs, or integers for labels",
        why="numbered by this data alone, every label would be wrong where the data lacks one of the classes",
        fix=f"write a data description with `classes:` and these names in the order of the outputs: {listed}{rest}",
    )


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10
