"""Counts what happens to requests: the whole run for the report, the latest window for a scaler."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stafette.platform.planner.config import SloConfig
from stafette.platform.twin.courses import Course
from stafette.platform.twin.gaps import Gaps
from stafette.router.router import Placement
from stafette.workers.mocker.glide import Stretch


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was answered to its end; times in seconds."""

    at_s: float  # when it came
    done_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: float
    itl_s: float | None  # mean; None: a single token
    wait_s: float  # until it was first sent to a worker
    kept: bool  # both promises


@dataclass(slots=True)
class Window:
    """What happened since the last look."""

    since_s: float
    arrivals: int = 0
    started: list[tuple[int, int]] = field(default_factory=list)  # prompt tokens, of them cached
    served: list[Served] = field(default_factory=list)
    failed: int = 0
    output_tokens: int = 0


class Tally:
    def __init__(self, slo: SloConfig) -> None:
        self.slo = slo
        self.served: list[Served] = []
        self.failures: Counter[str] = Counter()
        self.failed_at: list[float] = []  # when they had come
        self.gaps = Gaps()
        self.arrivals = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._window = Window(0.0)

    @property
    def attainment(self) -> float:
        """Return the share of ended requests whose two promises were kept; who failed had none."""
        ended = len(self.served) + len(self.failed_at)
        return sum(each.kept for each in self.served) / ended if ended else 1.0

    def take_window(self, now: float) -> Window:
        window, self._window = self._window, Window(now)
        return window

    def came(self, course: Course) -> None:
        self.arrivals += 1
        self.prompt_tokens += len(course.prompt)
        self._window.arrivals += 1

    def sent(self, course: Course, placement: Placement, now: float) -> None:
        if not course.placed:
            course.placed, course.placed_s = True, now
            self._window.started.append((len(course.prompt), placement.cached_tokens))

    def grew(self, course: Course, now: float, count: int) -> None:
        """Tokens have come, all at once."""
        self.output_tokens += count
        self._window.output_tokens += count
        if len(course.tokens) == count:
            course.first_s = now
        else:
            self.gaps.add((now - course.last_s) / count)
        course.last_s = now

    def ran(self, courses: list[Course], stretch: Stretch) -> None:
        """Tokens have come to each of them, one with each step of a stretch."""
        ends, count = stretch.ends_s, len(stretch.ends_s)
        self.output_tokens += count * len(courses)
        self._window.output_tokens += count * len(courses)
        first, last = float(ends[0]), float(ends[-1])
        for course in courses:
            self.gaps.add(first - course.last_s)
            course.last_s = last
        if count > 1:
            self.gaps.add_all(np.diff(ends), len(courses))

    def done(self, course: Course, now: float) -> None:
        count = len(course.tokens)
        ttft_s = course.first_s - course.at_s
        itl_s = (course.last_s - course.first_s) / (count - 1) if count > 1 else None
        kept = ttft_s * 1e3 <= self.slo.ttft_ms
        kept = kept and (itl_s is None or itl_s * 1e3 <= self.slo.itl_ms)
        served = Served(
            at_s=course.at_s,
            done_s=now,
            prompt_tokens=len(course.prompt),
            cached_tokens=course.cached_tokens,
            output_tokens=count,
            ttft_s=ttft_s,
            itl_s=itl_s,
            wait_s=course.placed_s - course.at_s,
            kept=kept,
        )
        self.served.append(served)
        self._window.served.append(served)

    def failed(self, course: Course, now: float, why: str) -> None:
        self.failures[why] += 1
        self.failed_at.append(course.at_s)
        self._window.failed += 1


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that so many percent do not exceed; 0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    place = -(-len(ordered) * percent // 100) - 1
    return ordered[max(0, int(place))]
