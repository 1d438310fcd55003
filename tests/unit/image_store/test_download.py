"""Frames of a download, which are put together without a message."""

import random

import pytest
from remuda.image.v1 import image_pb2
from remuda_image_store.download import FRAME_BYTES, data_frame


@pytest.mark.parametrize("length", [1, 127, 128, 16_383, 16_384, FRAME_BYTES - 1, FRAME_BYTES])
@pytest.mark.parametrize("offset", [0, 1, (1 << 40) + 5])
def test_a_frame_is_the_message_that_holds_the_same(offset: int, length: int) -> None:
    data = random.Random(length).randbytes(length)
    frame = data_frame(offset, memoryview(b"before" + data)[6:], 1 << 41)
    assert frame.data_bytes == length
    assert image_pb2.DownloadImageResponse.FromString(frame.serialized) == image_pb2.DownloadImageResponse(
        offset=offset, data=data, total_bytes=1 << 41
    )
