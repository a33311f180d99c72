"""Who may call what: one interceptor over every call, unary, streaming and reflection."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import structlog

from trainwire_server.errors import RequestError, RoleTooLow, TokenMissing, TokenUnknown
from trainwire_server.identity import CALLER, Identity, Role, call_fields
from trainwire_server.service.status import abort
from trainwire_server.tokens import find, read_tokens

_TRAINING = "/trainwire.v1.TrainingService"
_DATASET = "/trainwire.v1.DatasetService"
_MODEL = "/trainwire.v1.ModelService"
ROLES = MappingProxyType(
    {
        f"{_TRAINING}/GetTraining": Role.READ,
        f"{_TRAINING}/ListTrainings": Role.READ,
        f"{_TRAINING}/WatchTraining": Role.READ,
        f"{_TRAINING}/SubmitTraining": Role.TRAIN,
        f"{_TRAINING}/Train": Role.TRAIN,
        f"{_TRAINING}/CancelTraining": Role.TRAIN,
        f"{_TRAINING}/ResumeTraining": Role.TRAIN,
        f"{_TRAINING}/DeleteTraining": Role.ADMIN,
        f"{_DATASET}/GetDataset": Role.READ,
        f"{_DATASET}/ListDatasets": Role.READ,
        f"{_DATASET}/UploadDataset": Role.TRAIN,
        f"{_DATASET}/DeleteDataset": Role.ADMIN,
        f"{_MODEL}/GetModel": Role.READ,
        f"{_MODEL}/ListModels": Role.READ,
        f"{_MODEL}/DownloadModel": Role.READ,
        f"{_MODEL}/SetModelAlias": Role.ADMIN,
        f"{_MODEL}/DeleteModel": Role.ADMIN,
        "/trainwire.v1.SystemService/GetSystemInfo": Role.READ,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.READ,
    }
)
"""The least role for each call; with tokens on, a call that is not here is refused to everybody."""
OPEN_TO_ALL = "/grpc.health.v1.Health/"
"""Whoever starts and stops servers asks for their health, and need not have a token."""

_Metadata = Sequence[tuple[str, str | bytes]]


class Access:
    """The tokens of a file, and what they allow.

    Args:
        path: the token file.

    Raises:
        TokenFileError: it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = read_tokens(path)
        self._reloaded = asyncio.get_running_loop().create_future()

    @property
    def reloaded(self) -> asyncio.Future[None]:
        """Done when the tokens have been read again."""
        return self._reloaded

    def reload(self) -> None:
        """Read the file again; calls from now on, and open streams, are held against it.

        Raises:
            TokenFileError: it cannot be used; the tokens stay as they were.
        """
        self._tokens = read_tokens(self._path)
        before, self._reloaded = self._reloaded, asyncio.get_running_loop().create_future()
        before.set_result(None)

    def identify(self, metadata: _Metadata) -> Identity:
        """Whose call this is.

        Raises:
            TokenMissing: there is no token.
            TokenUnknown: it is not in the file.
        """
        identity = find(self._tokens, _bearer_token(metadata))
        if identity is None:
            raise TokenUnknown("the server does not know this token; it may have been removed")
        return identity


def _bearer_token(metadata: _Metadata) -> str:
    values = [value for key, value in metadata if key == "authorization"]
    # With two of them, who looks at the first and who looks at the last would see two callers.
    if len(values) == 1 and isinstance(values[0], str):
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    raise TokenMissing(
        "this server takes calls with a token alone; send it as metadata "
        "`authorization: Bearer TOKEN` (trainwire: --token-file)"
    )


def check_role(identity: Identity, method: str) -> None:
    """Raise RoleTooLow unless the caller may call a method ("/package.Service/Method")."""
    needed = ROLES.get(method)
    if needed is None:
        raise RoleTooLow(f"nobody may call {_short(method)} on a server with tokens")
    if identity.role < needed:
        raise RoleTooLow(
            f"{_short(method)} needs the role {needed.text}; "
            f"the token {identity.name} has the role {identity.role.text}"
        )


def _short(method: str) -> str:
    return method.rpartition("/")[2]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets through what the caller's token allows, before anything of the request is read."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if details.method.startswith(OPEN_TO_ALL):
            return handler
        reloaded = self._access.reloaded
        try:
            identity = self._access.identify(details.invocation_metadata)
            CALLER.set(identity)
            if handler is None:
                return None  # no such method: UNIMPLEMENTED
            check_role(identity, details.method)
        except RequestError as error:
            return _refusal(error, details.method)
        if handler.request_streaming or handler.response_streaming:
            return self._while_allowed(handler, details, identity.tenant, reloaded)
        return handler

    def _while_allowed(
        self, handler: Any, details: Any, tenant: str, reloaded: asyncio.Future[None]
    ) -> Any:
        """The handler of a stream, which ends when its caller may not call it any more."""
        name, method = method_of(handler)

        async def call(request: Any, context: Any) -> Any:
            # Before all else: a refusal that met the first answer on its way would send these once
            # more, which gRPC does not allow, and the stream would never end.
            with suppress(grpc.aio.InternalError):  # the caller has just left
                await context.send_initial_metadata(())
            running = asyncio.ensure_future(method(request, context))
            try:
                return await self._watched(running, details, tenant, reloaded)
            except RequestError as error:
                _log_refusal(error, details.method, context)
                return await abort(context, error)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        return handler._replace(**{name: call})

    async def _watched(
        self,
        running: asyncio.Future[Any],
        details: Any,
        tenant: str,
        reloaded: asyncio.Future[None],
    ) -> Any:
        while True:
            await asyncio.wait({running, reloaded}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            reloaded = self._access.reloaded
            identity = self._access.identify(details.invocation_metadata)
            if identity.tenant != tenant:
                raise TokenUnknown("the token is of another tenant now; call again")
            check_role(identity, details.method)


def method_of(handler: Any) -> tuple[str, Callable[[Any, Any], Any]]:
    """The name and the method of a handler; one that yields its answers is made to write them."""
    name = "stream" if handler.request_streaming else "unary"
    name += "_stream" if handler.response_streaming else "_unary"
    method = getattr(handler, name)
    if not inspect.isasyncgenfunction(method):
        return name, method

    async def write(request: Any, context: Any) -> None:
        # Closed with the call, not some time after: what it counts it counts until then.
        async with aclosing(method(request, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    return name, write


def _refusal(error: RequestError, method: str) -> Any:
    """A handler that refuses; as one of streams it is called before a message is read."""

    async def refuse(_: Any, context: Any) -> None:
        _log_refusal(error, method, context)
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _log_refusal(error: RequestError, method: str, context: Any) -> None:
    # A path that is no method of ours is the caller's text, which could be anything.
    name = method if method in ROLES else "unknown"
    log = structlog.get_logger()
    log.warning(
        "rpc.refused", method=name, reason=error.reason, peer=context.peer(), **call_fields()
    )
