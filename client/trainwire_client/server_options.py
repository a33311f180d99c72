"""The options of every command that talks to a server: where it is, and how it is secured."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from trainwire_client.channel import DEFAULT_TARGET, Security
from trainwire_client.client import TrainingClient

__all__ = ["LOCAL_SERVER", "Server", "with_server_options"]


def _file(flag: str, about: str) -> Any:
    variable = f"TRAINWIRE_TARGET_{flag.upper().replace('-', '_')}"
    return typer.Option(f"--{flag}", metavar="FILE", envvar=variable, help=about)


@dataclass(frozen=True)
class Server:
    """A server as the options describe it."""

    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="HOST:PORT",
            envvar="TRAINWIRE_TARGET",
            help="The server to talk to.",
        ),
    ] = DEFAULT_TARGET
    ca: Annotated[
        Path | None,
        _file(
            "ca", "CAs (PEM) that the server's certificate may be of; without it there is no TLS."
        ),
    ] = None
    cert: Annotated[
        Path | None, _file("cert", "Your certificate (PEM), where the server asks for one.")
    ] = None
    key: Annotated[Path | None, _file("key", "The key (PEM) of your certificate.")] = None
    token_file: Annotated[
        Path | None, _file("token-file", "File that holds your token, and nothing else.")
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="TRAINWIRE_TARGET_INSECURE",
            help="Send the token to another machine without TLS: the network itself encrypts.",
        ),
    ] = False

    def client(self) -> TrainingClient:
        """A client of the server."""
        return TrainingClient(**asdict(self))

    def security(self) -> Security:
        """How to connect to it."""
        return Security(self.ca, self.cert, self.key, self.token_file, self.insecure)

    def arguments(self) -> str:
        """The options as they are typed, each with a space before it."""
        given = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                given.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
        return "".join(f" {text}" for text in given)


LOCAL_SERVER = Server()
"""What a command talks to when no option says otherwise."""


def with_server_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command in which each field of `Server` is an option, in the place of `server`."""
    names = [field.name for field in fields(Server)]

    def command(**given: Any) -> None:
        server = Server(**{name: given.pop(name) for name in names})
        function(server=server, **given)

    own = inspect.signature(function, eval_str=True)
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    # What typer reads the options from.
    parameters = [
        option
        for parameter in own.parameters.values()
        for option in (_options() if parameter.name == "server" else [parameter])
    ]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in parameters}
    return command


def _options() -> list[inspect.Parameter]:
    hints = get_type_hints(Server, include_extras=True)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(Server)
    ]
