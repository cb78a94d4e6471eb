"""Second moments of layers; they stand in `edgesmith_calibration`, since recovery refits layers as well."""

from edgesmith_calibration.moments import Moments, MomentsObserver

__all__ = ["Moments", "MomentsObserver"]
