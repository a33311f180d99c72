"""Answers that their callers have not read yet, which gRPC keeps for as long as they do not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from trainwire_server.errors import QuotaExceeded
from trainwire_server.identity import tenant_of_caller
from trainwire_server.service.status import abort

_CALL_BYTES = 24 * 1024
"""What gRPC and Python hold of a call besides its answer."""
_MIB = 2**20


class Unread:
    """How much of the answers of all unary calls may be held.

    A method that returns its answer is over, and gRPC has that until the caller reads it or goes.
    Nothing can take it back, so that what is held is counted, and what has no room is refused: an
    error has no bytes that wait to be read.

    Args:
        most_mb: MiB of answers on their way, each with what its call takes; one tenant may have
            half of it.
    """

    def __init__(self, most_mb: int) -> None:
        self._most_mb = most_mb
        self._most = most_mb * _MIB
        self._all = 0
        self._of: Counter[str] = Counter()

    def counted(
        self, method: Callable[[Any, Any], Awaitable[Any]], encode: Callable[[Any], bytes]
    ) -> Callable[[Any, Any], Awaitable[bytes]]:
        """The method of a unary call, whose answer is counted until it has been read.

        Args:
            encode: makes bytes of an answer. Here and not in gRPC, which would keep the message
                too: of many columns it is four times as large as its bytes.
        """

        async def call(request: Any, context: Any) -> bytes:
            tenant = tenant_of_caller()
            try:
                # Before anything is done for a caller who cannot be told of it.
                self._check(tenant, 0)
                answer = encode(await method(request, context))
                self._check(tenant, len(answer))
            except QuotaExceeded as error:
                answer = b""
                await abort(context, error.with_traceback(None))
            self._hold(tenant, len(answer) + _CALL_BYTES)
            return answer

        return call

    def _check(self, tenant: str, size: int) -> None:
        size += _CALL_BYTES
        if self._all + size <= self._most // 2:
            return
        held = self._of[tenant]
        # The only one of a tenant may be as large as it is.
        if held and held + size > self._most // 2:
            raise self._no_room(size, f"{held} bytes of this tenant's, which may have half of it,")
        if held and self._all + size > self._most:
            raise self._no_room(size, f"{self._all} bytes")

    def _hold(self, tenant: str, size: int) -> None:
        self._all += size
        self._of[tenant] += size
        # gRPC's own task, in which it sends the answer too. Callbacks of the context make a cycle
        # of each call, which stays until somebody looks for garbage.
        task: Any = asyncio.current_task()
        task.add_done_callback(partial(self._gone, tenant, size))

    def _gone(self, tenant: str, size: int, _: Any) -> None:
        self._all -= size
        self._of[tenant] -= size
        if not self._of[tenant]:
            del self._of[tenant]

    def _no_room(self, size: int, held: str) -> QuotaExceeded:
        return QuotaExceeded(
            f"answers of {held} wait for callers who do not read them, --max-unread-mb is "
            f"{self._most_mb}, and this one takes {size}; read or cancel some, and call again, "
            "with the same request_id if there is one",
            "max_unread_mb",
            self._most_mb,
        )
