"""Entry point of `trainwire-server`.

Training processes import this module again, so it imports nothing heavy at the top.
"""

from __future__ import annotations

import asyncio
import os
import sys


def main() -> None:
    """Run the server until it is told to stop; `token` as first word makes a token instead."""
    if sys.argv[1:2] == ["token"]:
        from trainwire_server.tokens import run_command

        run_command(sys.argv[2:])
        return
    from trainwire_server.execution import local
    from trainwire_server.settings import read_settings

    settings = read_settings()
    # gRPC's own lines would stand unstructured between ours, which say the same.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # onnxruntime, which checks models, would report to its makers and keep an id of this machine.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Before grpc is imported: the fork server must never share a process with its threads.
    local.start_forkserver()
    from trainwire_server.app import StartError, serve

    async def run() -> None:
        status = 0
        try:
            await serve(settings)
        except StartError as error:
            sys.stderr.write(f"trainwire-server: {error}\n")
            status = 1
        # All is closed. What an ordinary end would wait for is a thread that asks the fork server
        # for a process, which it answers when it has imported torch: seconds, just after a start.
        os._exit(status)

    asyncio.run(run())


if __name__ == "__main__":
    main()
