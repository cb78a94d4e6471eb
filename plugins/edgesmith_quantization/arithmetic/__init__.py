"""The mathematics of rounding: pure functions of arrays that can be held against their papers."""
