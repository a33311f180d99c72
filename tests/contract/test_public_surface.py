"""What other programs import stays as it is, or changes where a reviewer sees it.

The list is tests/contract/public_surface.txt, one name with its signature a line; a change that is
meant is written there with `python tests/contract/test_public_surface.py`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import trainwire_client

LIST = Path(__file__).parent / "public_surface.txt"
MODULES = (
    "trainwire.contract",
    "trainwire.decisions",
    "trainwire.reference",
    "trainwire_client",
    "trainwire_client.aio",
    "trainwire_client.predictions",
)
"""What the pages of this project tell people to import; generated code has guards of its own."""


def surface() -> str:
    """Every public name of `MODULES` with its signature, a line each."""
    return "".join(f"{line}\n" for module in MODULES for line in _of_module(module))


def _of_module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for public in module.__all__:
        yield from _of(f"{name}.{public}", getattr(module, public))


def _of(path: str, found: Any) -> Iterator[str]:
    if inspect.isclass(found):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        yield f"class {path}({bases})"
        for name, member in sorted(vars(found).items()):
            if name == "__init__" or not name.startswith("_"):
                yield f"  {_member(name, member)}"
    elif callable(found):
        yield f"{path}{inspect.signature(found)}"
    else:
        yield f"{path}: {type(found).__name__}"


def _member(name: str, member: Any) -> str:
    if isinstance(member, FunctionType):
        kind = "async " if inspect.iscoroutinefunction(member) else ""
        return f"{kind}{name}{inspect.signature(member)}"
    return f"{name}: {type(member).__name__}"


def test_it_is_what_the_list_says() -> None:
    listed, found = LIST.read_text(), surface()
    changes = difflib.unified_diff(listed.splitlines(), found.splitlines(), "list", "code", n=0)
    assert listed == found, "\n".join(["", *changes])


def test_the_list_depends_on_no_address() -> None:
    assert " at 0x" not in surface()


def test_every_error_that_a_caller_may_get_can_be_imported() -> None:
    errors = importlib.import_module("trainwire_client.errors")
    raised = {name for name in errors.__all__ if name.endswith("Error")}
    assert raised <= set(trainwire_client.__all__)


if __name__ == "__main__":
    LIST.write_text(surface())
