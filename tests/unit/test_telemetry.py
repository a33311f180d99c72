"""Predicting tells nobody: onnxruntime's reports are off, of which it keeps traces at home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from onnx import TensorProto, helper, save

PROGRAM = """
import sys, time
from contextlib import suppress
from trainwire_client.errors import UnreadableModelError
from trainwire_client.onnx_model import load_onnx_model
with suppress(UnreadableModelError):  # it has nothing of ours in it, which shows after loading
    load_onnx_model(sys.argv[1])
assert "onnxruntime" in sys.modules
"""


def test_predicting_leaves_no_traces_of_reports(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:]
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    home = tmp_path / "home"
    home.mkdir()
    names = ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    inherited = {name: text for name, text in os.environ.items() if name not in names}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**inherited, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=60,
    )
    assert not list(home.rglob("*"))
