"""Roles from importances: the mathematics of the analysis, without a graph.

Source: "Superficial Safety Alignment Hypothesis", arXiv 2410.10862, section 4 and its released code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith_pruning.roles.record import Role

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of the cost of all units each role is to have, from 0 to 1. The rest is mixed."""

    redundant: float
    attribute: float
    utility: float


def standardized(values: Float64) -> Float64:
    """Return the values less their mean, in units of their standard deviation; zeros where all are equal."""
    deviation = values.std()
    # Equal numbers may have a deviation of rounding alone.
    if deviation <= 1e-12 * np.abs(values).max(initial=0.0):
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / deviation)


def atom_scores(importance: Float64, positions: Sequence[Sequence[int]], *, squared: bool) -> Float64:
    """Return the mean standardized importance of each atom's channels, [atoms].

    Args:
        importance: Of each channel of a layer's input.
        positions: Channels of each atom: all of a head, one of an MLP.
        squared: Square importances first, as the released code does for attention.
    """
    members = np.array(sorted({channel for channels in positions for channel in channels}), np.intp)
    known = np.square(importance[members]) if squared else importance[members]
    scores = np.zeros(len(importance))
    scores[members] = standardized(known)
    return np.array([scores[list(channels)].mean() if len(channels) else 0.0 for channels in positions])


def assign_roles(attribute: Float64, utility: Float64, costs: Float64, shares: Shares) -> list[Role]:
    """Return the role of each unit.

    Redundant are those of lowest sum, attribute those of highest difference, utility those of lowest difference, each
    until its share of the cost is reached, so at most one unit beyond it. They are assigned in that order; a later role
    replaces an earlier one. Ties go to the unit that stands first.

    Args:
        attribute: Scores on the attribute, [units].
        utility: Scores on the utility, [units].
        costs: What each unit costs, such as its parameters, [units].
        shares: How much each role is to have.
    """
    total, difference = attribute + utility, attribute - utility
    roles: list[Role] = ["mixed"] * len(costs)
    chosen: tuple[tuple[Role, Float64, float], ...] = (
        ("redundant", total, shares.redundant),
        ("attribute", -difference, shares.attribute),
        ("utility", difference, shares.utility),
    )
    for role, order, share in chosen:
        for unit in first_until(order, costs, share):
            roles[unit] = role
    return roles


def first_until(order: Float64, costs: Float64, share: float) -> list[int]:
    """Return the units of lowest `order`, until they hold that share of all costs."""
    limit = share * costs.sum() * (1 - 1e-9)  # a share that is met exactly is met, whatever rounding says
    taken: list[int] = []
    spent = 0.0
    for unit in np.argsort(order, kind="stable").tolist():
        if spent >= limit:
            break
        taken.append(unit)
        spent += costs[unit]
    return taken


def most_mixed(roles: Sequence[Role], attribute: Float64, costs: Float64, share: float) -> list[int]:
    """Return the mixed units of highest score on the attribute, until they hold that share of all costs."""
    order = np.where(np.array(roles) == "mixed", -attribute, np.inf)
    return [unit for unit in first_until(order, costs, share) if roles[unit] == "mixed"]
