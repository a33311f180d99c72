"""Who calls: what a token lets its caller do, which call is being answered, and whose it is."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

DEFAULT_TENANT = "default"
"""Whose all is that is said to be nobody else's; on a server without tokens, everything."""
TENANT_WORDS = "1 to 64 lower-case letters, digits and _ -, the first a letter or digit"
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def is_tenant(name: str) -> bool:
    """Whether a tenant may be called this: it becomes the name of a folder."""
    return _TENANT.fullmatch(name) is not None


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
        tenant: whose jobs, datasets and models it has to do with.
    """

    name: str
    role: Role
    tenant: str = DEFAULT_TENANT


CALLER: ContextVar[Identity | None] = ContextVar("CALLER", default=None)
"""Whose call this is; None where the server takes calls from everybody.

A task that a call starts and that outlives it still has its caller here: only what runs as part of
a call may look.
"""


def tenant_of_caller() -> str:
    """Whose call this is."""
    caller = CALLER.get()
    return DEFAULT_TENANT if caller is None else caller.tenant


@dataclass
class Call:
    """A call that is being answered.

    Attributes:
        id: names it in the log, in its error and in its trailing metadata. Not the `request_id` of
            a training request, which is the same however often it is sent.
        reason: why it was refused; empty if it was not.
        quota: name of the quota that it was refused for, if any.
    """

    id: str
    reason: str = ""
    quota: str = ""


CALL: ContextVar[Call | None] = ContextVar("CALL", default=None)
"""Which call this is, with what holds for CALLER; None outside of calls."""


def call_fields() -> dict[str, str]:
    """The call and its caller as a log line has them; no caller where there are no tokens."""
    call, caller = CALL.get(), CALLER.get()
    fields = {} if call is None else {"call_id": call.id}
    return fields if caller is None else {**fields, "caller": caller.name, "tenant": caller.tenant}
