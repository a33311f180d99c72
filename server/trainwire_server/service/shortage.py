"""What a call is refused with when the server's system is short of something."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from trainwire_server.errors import SystemShortage

_HANDLES = (errno.EMFILE, errno.ENFILE)


@contextmanager
def refusing_when_short() -> Iterator[None]:
    """Tells a shortage apart from what else opening a file or starting a thread may raise.

    Raises:
        SystemShortage: there is no file handle, or no thread.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _HANDLES:
            raise
        raise _shortage(error) from error
    except RuntimeError as error:
        # What Python raises when it can start no thread.
        raise _shortage(error) from error


def _shortage(error: Exception) -> SystemShortage:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return SystemShortage(f"the server's system is short of something ({text}); try again")
