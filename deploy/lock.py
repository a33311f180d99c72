"""Prints the versions that an image of the server is made of: those that are installed here.

Run with the interpreter of the environment that the tests ran in: `make lock`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("cli", "otel", "server")
HEADING = f"# What trainwire[{','.join(EXTRAS)}] needs, as tested. Written by `make lock`."


def closure(extras: Iterable[str] = EXTRAS) -> dict[str, str]:
    """The version of every distribution that these extras lead to, by canonical name.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    found: dict[str, str] = {}
    waiting = [("trainwire", tuple(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for requirement in requirements(name, wanted):
            needed = canonicalize_name(requirement.name)
            # Without what stands behind a plus: that is another build of the same version.
            found[needed] = distribution(needed).version.partition("+")[0]
            step = (needed, tuple(sorted(requirement.extras)))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    found.pop("trainwire", None)
    return found


def requirements(name: str, extras: tuple[str, ...]) -> Iterable[Requirement]:
    """What a distribution and these extras of it need on this machine."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def main() -> None:
    """Write the lines of deploy/requirements.txt to standard output."""
    lines = [f"{name}=={version}" for name, version in sorted(closure().items())]
    sys.stdout.write("\n".join([HEADING, *lines, ""]))


if __name__ == "__main__":
    main()
