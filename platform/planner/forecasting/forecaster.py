"""What every model of a series can do: look at it, and say how it goes on."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]


class Forecaster(ABC):
    name: str
    least = 1  # values, below which it has nothing to say
    local = True  # knows no more than the level; what was before a jump would only mislead it

    @abstractmethod
    def path(self, series: Series, horizon: int) -> Series:
        """Return the next `horizon` values. `series` holds at least `least` of them."""
