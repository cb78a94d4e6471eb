"""How many inputs of a weight share a scale on a target: the size wished for, or the largest smaller one that fits."""

from edgesmith.graph.weight_sites import WeightSite
from edgesmith.host.dialect import WeightFormat


def fitting_size(site: WeightSite, wanted: int | None, form: WeightFormat | None) -> int | None:
    """Return the size of a weight's blocks along the summed dimension; None for one scale per output channel.

    Args:
        site: The weight.
        wanted: The size wished for; None for no blocks.
        form: How the target stores the weight; None where it is not known to.
    """
    if wanted is None or not _has_blocks(site, wanted):
        return None
    return wanted if form is None else form.fitting_block(site.shape[site.input_axis], wanted)


def size_obstacle(site: WeightSite, wanted: int | None, form: WeightFormat | None, target: str) -> str:
    """Return why no blocks of the target fit a weight that should have some, or an empty string."""
    if wanted is None or not _has_blocks(site, wanted) or fitting_size(site, wanted, form) is not None:
        return ""
    length = site.shape[site.input_axis]
    return f"{target} takes whole blocks only, and none of its sizes up to {wanted} divides {length} inputs"


def _has_blocks(site: WeightSite, wanted: int) -> bool:
    """Return whether a weight is cut into blocks: a matrix with rows longer than one."""
    return site.is_matrix and site.shape[site.input_axis] > wanted
