"""Who calls: what a token lets its caller do, and whose call is being answered."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What a caller may do; each may do all that those before it may."""

    READ = 1
    TRAIN = 2
    ADMIN = 3

    @property
    def text(self) -> str:
        """The role as it is written in a token file."""
        return self.name.lower()


@dataclass(frozen=True)
class Identity:
    """What the server knows of a caller.

    Attributes:
        name: the name of its token, for the log.
        role: what it may do.
    """

    name: str
    role: Role


CALLER: ContextVar[Identity | None] = ContextVar("CALLER", default=None)
"""Whose call this is; None where the server takes calls from everybody.

A task that a call starts and that outlives it still has its caller here: only what runs as part of
a call may look.
"""


def caller_fields() -> dict[str, str]:
    """The caller as a log line has it; nothing where there are no tokens."""
    caller = CALLER.get()
    return {} if caller is None else {"caller": caller.name}
