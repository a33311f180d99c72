"""Who calls: what a token lets its caller do, which call is being answered, and whose it is."""

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


@dataclass
class Call:
    """A call that is being answered.

    Attributes:
        id: names it in the log, in its error and in its trailing metadata. Not the `request_id` of
            a training request, which is the same however often it is sent.
        reason: why it was refused; empty if it was not.
    """

    id: str
    reason: str = ""


CALL: ContextVar[Call | None] = ContextVar("CALL", default=None)
"""Which call this is, with what holds for CALLER; None outside of calls."""


def call_fields() -> dict[str, str]:
    """The call and its caller as a log line has them; no caller where there are no tokens."""
    call, caller = CALL.get(), CALLER.get()
    fields = {} if call is None else {"call_id": call.id}
    return fields if caller is None else {**fields, "caller": caller.name}
