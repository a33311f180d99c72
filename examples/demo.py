"""Trains on real market data over the wire and shows what came of it (`make demo`).

Starts a server of its own, runs the `trainwire` command as a user would, compares the result with
two baselines, and stops everything again. What it leaves is in `demo-run/`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import market
from baselines import Scores, score_baselines
from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

RUN = Path("demo-run")
BIN = Path(sys.executable).parent


def main() -> int:
    """Run the demonstration; the exit status."""
    started = time.monotonic()
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    table = RUN / "market.parquet"
    market.make_table(market.load_bars()).to_parquet(table, index=False)
    with run_server() as address:
        print(f"a trainwire server is listening on {address}; its log is {RUN / 'server.log'}\n")
        if run_command(address, *train_arguments(table)) != 0:
            print("demo: FAILED, see above")
            return 1
        with TrainingClient(address) as client:
            job = next(client.list())
            model = client.model(job.model)
            client.download(model, RUN / "bundle")
        stored = RUN / "data" / job.request.dataset / "table"
        scores = {"trainwire, hybrid_cnn_lstm": _scores(model.test)}
        scores |= score_baselines(job.request, stored)
    print(comparison(scores))
    print(f"\n{_verdict(scores)}")
    print(f"\nthe model bundle is in {RUN / 'bundle'} (start with MODEL_CARD.md)")
    print(f"demo: SUCCEEDED in {time.monotonic() - started:.0f} s")
    return 0


@contextmanager
def run_server() -> Iterator[str]:
    """A server of the demonstration's own; its address."""
    flags = ["--listen", "127.0.0.1:0", "--data-dir", str(RUN / "data"), "--log-format", "json"]
    with (RUN / "server.log").open("w") as log:
        process = subprocess.Popen([BIN / "trainwire-server", *flags], stderr=log)
    try:
        yield _address(process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _address(process: subprocess.Popen[bytes]) -> str:
    """The address the server logs when it is ready."""
    while process.poll() is None:
        for line in (RUN / "server.log").read_text().splitlines():
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("event") == "server.ready":
                return str(record["address"])
        time.sleep(0.05)
    raise SystemExit(f"demo: FAILED, the server did not start: see {RUN / 'server.log'}")


def train_arguments(table: Path) -> list[str]:
    """What follows `trainwire` on the command line."""
    flags = ["--data", str(table), "--label", "direction", "--group", "ticker", "--time", "date"]
    settings = [
        word for path, value in market.TRAINING.items() for word in ("--set", f"{path}={value}")
    ]
    return ["train", "--name", "market direction", *flags, *settings]


def run_command(address: str, *arguments: str) -> int:
    """Show a `trainwire` command and run it; its exit status."""
    print(f"$ trainwire {shlex.join(arguments)}\n", flush=True)
    return subprocess.run(
        [BIN / "trainwire", *arguments, "--target", address], check=False
    ).returncode


def _scores(test: training_pb2.SplitMetrics) -> Scores:
    recalls = {metrics.name: metrics.recall for metrics in test.classes}
    return {"macro F1": test.macro_f1, "balanced accuracy": test.balanced_accuracy, **recalls}


def comparison(scores: dict[str, Scores]) -> str:
    """A table of all scores on the test windows."""
    columns = list(next(iter(scores.values())))
    classes = "".join(f"{name:>10}" for name in columns[2:])
    lines = [
        "",
        f"{'test windows':30}{'macro':>10}{'balanced':>10}{'recall':>10}",
        f"{'':30}{'F1':>10}{'accuracy':>10}{classes}",
    ]
    for name, row in scores.items():
        lines.append(f"{name:30}" + "".join(f"{row[column]:10.3f}" for column in columns))
    return "\n".join(lines)


def _verdict(scores: dict[str, Scores]) -> str:
    ours, majority, logistic = (row["macro F1"] for row in scores.values())
    return textwrap.fill(
        f"Macro F1 is {ours:.3f} against {logistic:.3f} for logistic regression and {majority:.3f} "
        "for always HOLD, on one period of five shares: differences under about 0.04 are noise "
        "here (a block bootstrap's 90 % interval is that wide), what such models learn is mostly "
        "whether a price moves and not which way, and nothing shows that one could trade on it.",
        width=95,
    )


if __name__ == "__main__":
    sys.exit(main())
