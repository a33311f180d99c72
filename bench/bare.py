"""A bare grpc.aio server, as small as one gets: `python -m bench.bare`; says its address.

Bytes go in and out as they are. `Echo` answers what it was sent, `Take` how much that was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def echo(request: bytes, _: Any) -> bytes:
    """Answer with the request."""
    return request


async def take(requests: AsyncIterator[bytes], _: Any) -> bytes:
    """Count what comes, and forget it."""
    size = 0
    async for request in requests:
        size += len(request)
    return str(size).encode()


async def main() -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    methods: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Take": grpc.stream_unary_rpc_method_handler(take),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
