"""What has happened at one level, taken to another: how high it would have gone there.

Below the level at which it was seen an excursion is taken to be in proportion, as bursts of the
same people are; above it, it grows less than that, since it may have been the work of others. How
far a forecast was off does not grow at all above the level that was forecast: one that was close to
nothing tells of itself, and not of what it would have missed had there been more.
"""

import numpy as np

from stafette.platform.planner.forecasting.forecaster import Series


def carried(level: float, bases: Series, heights: Series) -> Series:
    """Return the heights that excursions from `bases` would reach from `level`."""
    in_proportion = level * heights / np.maximum(bases, 1e-9)
    roots = np.sqrt(level) + np.sqrt(np.maximum(heights, 0.0)) - np.sqrt(np.maximum(bases, 0.0))
    taken: Series = np.where(level < bases, in_proportion, np.maximum(roots, 0.0) ** 2)
    return taken


def as_far_off(level: float, told: Series, came: Series) -> Series:
    """Return what would have come instead of `level`, had it been as far off as others were."""
    in_proportion = level * came / np.maximum(told, 1e-9)
    found: Series = np.where(level < told, in_proportion, level + came - told)
    return np.maximum(found, 0.0)
