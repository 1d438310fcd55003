"""Chunks: names, zeros, packing."""

import os

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from remuda_core.images.chunks import (
    CHUNK_BYTES,
    HOLE,
    DamagedChunk,
    Digest,
    Encoding,
    Stored,
    chunk_digest,
    decode,
    digest_of,
    encode,
    is_zero,
    pack,
    unpack,
)


@given(st.binary(max_size=4096))
@example(b"")
@example(bytes(4096))
def test_a_chunk_survives_being_encoded_packed_unpacked_and_decoded(data: bytes) -> None:
    assert decode(unpack(pack(encode(data))), digest_of(data), len(data)) == data


@given(length=st.integers(1, CHUNK_BYTES), at=st.integers(0, CHUNK_BYTES - 1), value=st.integers(1, 255))
@settings(max_examples=25)
def test_one_byte_that_is_not_zero_makes_a_chunk_that_has_bytes(length: int, at: int, value: int) -> None:
    assert is_zero(bytes(length))
    assert chunk_digest(bytes(length)) == HOLE
    data = bytearray(length)
    data[at % length] = value
    assert not is_zero(bytes(data))
    assert chunk_digest(bytes(data)) == digest_of(bytes(data)) != HOLE


def test_more_than_a_chunk_is_never_taken_for_zeros() -> None:
    with pytest.raises(ValueError, match="more than a chunk"):
        is_zero(bytes(CHUNK_BYTES + 1))


def test_text_is_compressed_and_noise_is_stored_as_it_is() -> None:
    text, noise = b"the same again and again " * 1000, os.urandom(25_000)
    assert encode(text).encoding is Encoding.ZSTD
    assert len(encode(text).data) < len(text) / 10
    assert encode(noise) == Stored(encoding=Encoding.IDENTITY, data=noise)


def test_a_whole_chunk_is_compressed_where_a_look_at_parts_of_it_promises_something() -> None:
    noise = os.urandom(CHUNK_BYTES)
    half = noise[: CHUNK_BYTES // 2] + bytes(CHUNK_BYTES // 2 - 1) + b"x"
    assert encode(noise) == Stored(encoding=Encoding.IDENTITY, data=noise)
    assert encode(half).encoding is Encoding.ZSTD
    assert decode(encode(half), digest_of(half), CHUNK_BYTES) == half


@given(data=st.binary(min_size=1, max_size=2000), flip=st.integers(0))
def test_a_flipped_bit_is_noticed(data: bytes, flip: int) -> None:
    stored = encode(data)
    damaged = bytearray(stored.data)
    damaged[flip // 8 % len(damaged)] ^= 1 << flip % 8
    if bytes(damaged) == stored.data:
        return
    try:
        plain = decode(Stored(encoding=stored.encoding, data=bytes(damaged)), digest_of(data), len(data))
    except DamagedChunk:
        return
    # zstd has bits that mean nothing; whatever comes out is what the digest names.
    assert plain == data


def test_a_frame_that_announces_another_size_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(DamagedChunk, match="does not hold 4096"):
        decode(Stored(encoding=Encoding.ZSTD, data=bomb), Digest(bytes(32)), 4096)


@pytest.mark.parametrize("blob", [b"", b"\x00data", b"\x07data"])
def test_a_blob_without_a_known_encoding_is_no_chunk(blob: bytes) -> None:
    with pytest.raises(DamagedChunk):
        unpack(blob)


def test_the_right_bytes_in_the_wrong_length_are_refused() -> None:
    with pytest.raises(DamagedChunk, match="5 bytes instead of 6"):
        decode(Stored(encoding=Encoding.IDENTITY, data=b"hello"), digest_of(b"hello"), 6)
