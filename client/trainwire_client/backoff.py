"""How long to wait before the next try, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainwire_client.errors import TrainwireError


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter, in seconds.

    The n-th delay (n = 0, 1, ...) is drawn evenly from the upper half of
    [0, min(maximum, initial * factor^n)], so that many clients of one server do not come back in
    the same moment ("equal jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """

    initial: float = 0.2
    maximum: float = 10.0
    factor: float = 2.0

    def delays(self) -> Iterator[float]:
        """Endless delays, in seconds."""
        ceiling = min(self.initial, self.maximum)
        while True:
            yield ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            ceiling = min(ceiling * self.factor, self.maximum)


class Outage:
    """The time since a server last answered, and the waits between tries.

    Args:
        backoff: the waits.
        limit: seconds without an answer after which to give up.
        clock: seconds that never go back.
    """

    def __init__(
        self, backoff: Backoff, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backoff = backoff
        self._limit = limit
        self._clock = clock
        self.end()

    @property
    def ongoing(self) -> bool:
        """Whether a try has failed since the server last answered."""
        return self._began is not None

    def end(self) -> None:
        """The server works again: the next failure is the first of its kind."""
        self.answered()
        self._delays = self._backoff.delays()

    def answered(self) -> None:
        """The server is there, though it did not do what was wanted: go on, ever more slowly."""
        self._began: float | None = None

    def next_delay(self, hint: float = 0.0) -> float | None:
        """Seconds to wait after a failed try; None when it is time to give up.

        Args:
            hint: seconds that the server asked for. The wait is longer than that, by what spreads
                the callers, but no longer than `Backoff.maximum`.
        """
        now = self._clock()
        if self._began is None:
            self._began = now
        left = self._began + self._limit - now
        delay = min(hint + next(self._delays), self._backoff.maximum)
        return min(delay, left) if left > 0 else None

    def delay_after(self, failure: TrainwireError) -> float:
        """Seconds to wait after a failed try; raises its failure when it is time to give up."""
        delay = self.next_delay(failure.retry_delay)
        if delay is None:
            raise failure
        return delay
