"""Page tokens: where a list goes on."""

from __future__ import annotations

from typing import Protocol

from trainwire import contract
from trainwire_server.errors import InvalidRequest


class PageRequest(Protocol):
    """A List request after `contract.resolve`."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...


def page_bounds(request: PageRequest) -> tuple[int | None, int]:
    """Where the page begins (None: at the newest) and how many entries it takes.

    Raises:
        InvalidRequest: the token is none that a List call returned.
    """
    if not request.page_token:
        return None, request.page_size
    if not (request.page_token.isascii() and request.page_token.isdigit()):
        violation = contract.Violation("page_token", "not a next_page_token of this call")
        raise InvalidRequest(str(violation), (violation,))
    return min(int(request.page_token), 2**62), request.page_size


def page_token(following: int | None) -> str:
    """The token of the page that begins there; empty when there is none."""
    return "" if following is None else str(following)
