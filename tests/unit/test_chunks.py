"""Chunks are taken out of their messages exactly where decoding them would give the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import unknown_fields
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from trainwire import contract
from trainwire.v1 import dataset_pb2
from trainwire_server.service.chunks import chunk_of, taking_chunks
from trainwire_server.service.status import DecodeInterceptor, Undecodable

CHUNK, DATA, UNKNOWN = b"\x12", b"\x0a", b"\x50\x01"


def message(data: bytes) -> bytes:
    chunk = dataset_pb2.DatasetChunk(data=data)
    return dataset_pb2.UploadDatasetRequest(chunk=chunk).SerializeToString()


def field(tag: bytes, content: bytes) -> bytes:
    """A field of fewer than 128 bytes."""
    return tag + bytes([len(content)]) + content


PARTS = st.recursive(
    st.binary(max_size=8),
    lambda inner: st.one_of(
        st.builds(field, st.sampled_from([CHUNK, DATA, b"\x1a", b"\x50"]), inner),
        st.builds(bytes.__add__, inner, inner).filter(lambda parts: len(parts) < 100),
    ),
    max_leaves=6,
)
"""Bytes that are often nearly a message."""


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2**20, 2**21, 2**22 - 32])
def test_a_chunk_is_taken_whatever_its_size_and_not_copied(size: int) -> None:
    sent = message(bytes(range(256)) * (size // 256) + bytes(size % 256))
    taken = chunk_of(sent)
    assert taken is not None
    assert taken.obj is sent
    assert taken == dataset_pb2.UploadDatasetRequest.FromString(sent).chunk.data
    assert len(taken) == size


@given(st.one_of(PARTS, st.binary(max_size=40)))
@example(b"")
@example(CHUNK)
@example(CHUNK + b"\xff" * 4)
def test_what_is_taken_is_all_that_protobuf_finds(sent: bytes) -> None:
    taken = chunk_of(sent)
    if taken is None:
        return
    decoded = dataset_pb2.UploadDatasetRequest.FromString(sent)
    assert decoded.chunk.data == bytes(taken)
    assert not unknown_fields.UnknownFieldSet(decoded)
    assert not unknown_fields.UnknownFieldSet(decoded.chunk)
    assert contract.violations(decoded) == []


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        field(CHUNK, b""),
        field(CHUNK, field(DATA, b"ab")) + UNKNOWN,
        field(CHUNK, field(DATA, b"ab") + UNKNOWN),
        UNKNOWN + field(CHUNK, field(DATA, b"ab")),
        field(CHUNK, field(DATA, b"ab")) + field(CHUNK, field(DATA, b"cd")),
        field(CHUNK, field(DATA, b"ab") + field(DATA, b"cd")),
        field(DATA, field(DATA, b"ab")),
        field(CHUNK, field(CHUNK, b"ab")),
        field(CHUNK, field(DATA, b"ab"))[:-1],
        CHUNK + b"\x84\x80\x80\x80\x00" + field(DATA, b"ab"),
    ],
)
def test_all_else_goes_to_the_decoder(sent: bytes) -> None:
    assert chunk_of(sent) is None
    decode = taking_chunks(dataset_pb2.UploadDatasetRequest.FromString)
    try:
        expected = dataset_pb2.UploadDatasetRequest.FromString(sent)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode(sent)
    else:
        assert decode(sent) == expected


def test_the_server_decodes_no_chunks() -> None:
    header = dataset_pb2.UploadDatasetRequest(header=dataset_pb2.DatasetHeader(size_bytes=2))
    sent = [header.SerializeToString(), message(b"ab"), message(b""), b"\x12\x09"]
    request = dataset_pb2.UploadDatasetRequest
    assert asyncio.run(received(sent)) == [request, memoryview, request, Undecodable]


async def received(sent: list[bytes]) -> list[type]:
    """What the messages of an upload come as."""
    kinds: list[type] = []

    async def take(requests: AsyncIterator[object], _: Any) -> bytes:
        kinds.extend([type(request) async for request in requests])
        return b""

    decode = dataset_pb2.UploadDatasetRequest.FromString
    methods: dict[str, Any] = {"UploadDataset": grpc.stream_unary_rpc_method_handler(take, decode)}
    service = grpc.method_handlers_generic_handler("trainwire.v1.DatasetService", methods)
    server = grpc.aio.server(interceptors=[DecodeInterceptor()])
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        upload: Any = channel.stream_unary("/trainwire.v1.DatasetService/UploadDataset")
        await upload(iter(sent))
    await server.stop(None)
    return kinds
