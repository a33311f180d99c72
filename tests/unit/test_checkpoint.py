"""Copies of weights, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainwire_server.data import durable
from trainwire_server.training import checkpoint


def test_a_copy_does_not_follow_the_live_weights() -> None:
    module = torch.nn.LSTM(2, 3)
    copy = checkpoint.copy_weights(module)
    before = {name: tensor.clone() for name, tensor in copy.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert all(torch.equal(copy[name], before[name]) for name in before)
    module.load_state_dict(copy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_saved_weights_come_back_bit_for_bit_and_equal_weights_give_equal_bytes(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    weights = checkpoint.copy_weights(torch.nn.LSTM(2, 3))
    checkpoint.save_weights(weights, tmp_path / "one")
    checkpoint.save_weights(dict(reversed(weights.items())), tmp_path / "two")
    loaded = safetensors.torch.load_file(tmp_path / "one")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for data in (b"long old content", b"new"):
        durable.write_file(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "file", b"old")
    # A folder where the partial file should go: the write fails before the rename.
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
