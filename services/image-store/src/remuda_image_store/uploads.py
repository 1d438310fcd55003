"""Receiving a qcow2 file, so that any replica can go on where any other one stopped.

Bytes are gathered into parts. A part is a blob in the backend under the stream's own segment; then the record
in etcd says that it is safe. What a killed replica had put and not recorded is never read: a segment ends
where the next one begins.
"""

import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from remuda.image.v1 import image_pb2
from remuda.store.v1 import image_pb2 as store_pb2
from remuda_core.errors import Reason, RemudaError, invalid_argument
from remuda_core.ids import ImageId

from remuda_image_store.content import Content
from remuda_image_store.inspection import HEAD_BYTES, check_head
from remuda_image_store.records import Changed, Found, Records, UploadState

# A file of 1 TiB is 131072 parts; what a broken stream has to send again is less than one.
PART_BYTES = 8 << 20
# Every stream adds a segment to the record, which etcd limits to 1.5 MiB.
_MOST_SEGMENTS = 4096


class Receiver:
    """One stream. `take` its frames, then `flush`."""

    def __init__(self, records: Records, content: Content, found: Found, state: UploadState) -> None:
        self._records = records
        self._content = content
        self._found = found
        self._state = state
        self._segment = uuid.uuid4().hex[:16]
        self._begin = state.record.committed_bytes
        self._pieces: list[bytes] = []
        self._gathered = 0

    @property
    def committed_bytes(self) -> int:
        return self._state.record.committed_bytes

    @property
    def sha256(self) -> str:
        """Empty: it is taken when the parts are put together."""
        return ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces.clear()

    async def take(self, frame: image_pb2.UploadImageRequest) -> None:
        """Raises UPLOAD_OFFSET_MISMATCH, INVALID_ARGUMENT beyond the announced size, and as `flush`."""
        data = frame.data  # Each look at this field copies it.
        check_place(
            frame.offset,
            len(data),
            expected=self.committed_bytes + self._gathered,
            safe=self.committed_bytes,
            file_bytes=self._found.record.image.file_bytes,
        )
        if data:
            self._pieces.append(data)
            self._gathered += len(data)
        if self._gathered >= PART_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Everything taken so far is safe afterwards. Raises UPLOAD_OFFSET_MISMATCH, DISK_FULL,
        Refused for the beginning of what is no acceptable qcow2.
        """
        if not self._gathered:
            return
        check_segments(self._state, self._segment)
        offset, data = self.committed_bytes, b"".join(self._pieces)
        if offset == 0 and (len(data) >= HEAD_BYTES or len(data) == self._found.record.image.file_bytes):
            # What names other files, or is no qcow2, is refused before the rest of it is sent.
            check_head(data[:HEAD_BYTES], qcow2=True)
        await self._content.put_part(self._found.id, self._segment, offset, data)
        try:
            self._state = await self._records.advance(
                self._found,
                self._state,
                segment=self._segment,
                offset=self._begin,
                committed=offset + len(data),
            )
        except Changed as error:
            # If the image was removed in between, nobody else would look for this part.
            await self._content.delete_part(self._found.id, self._segment, offset)
            raise mismatch(
                "another stream goes on with this upload, or the image has changed", offset
            ) from error
        self._pieces.clear()
        self._gathered = 0


async def read_back(content: Content, upload: store_pb2.UploadRecord) -> AsyncIterator[bytes]:
    """The file, part by part. Raises DIGEST_MISMATCH when a part is missing or of another length."""
    image = ImageId(upload.image_id)
    position = 0
    ends = [segment.offset for segment in upload.segments[1:]] + [upload.committed_bytes]
    for segment, end in zip(upload.segments, ends, strict=True):
        for offset, blob in await content.parts(image, segment.id):
            if offset >= end:
                # Put, and never recorded.
                break
            data = await content.blobs.get(blob.key)
            if offset != position or offset + len(data) > end:
                raise _damaged(image, position)
            yield data
            position = offset + len(data)
        if position != end:
            raise _damaged(image, position)


def check_place(offset: int, length: int, *, expected: int, safe: int, file_bytes: int) -> None:
    """Of a frame. Raises UPLOAD_OFFSET_MISMATCH, INVALID_ARGUMENT beyond the announced size."""
    if offset != expected:
        raise mismatch(f"the next byte is {expected}, not {offset}", safe)
    if expected + length > file_bytes:
        raise invalid_argument("data", f"the file was announced with {file_bytes} bytes")


def check_segments(state: UploadState, segment: str) -> None:
    """Raises STATE_FORBIDS_ACTION when there is no room for one more segment."""
    segments = state.record.segments
    if len(segments) >= _MOST_SEGMENTS and segments[-1].id != segment:
        raise RemudaError(
            Reason.STATE_FORBIDS_ACTION,
            "the upload was interrupted too often: delete the image, begin anew",
        )


def mismatch(message: str, committed: int) -> RemudaError:
    return RemudaError(Reason.UPLOAD_OFFSET_MISMATCH, message, metadata={"committed_bytes": str(committed)})


def _damaged(image: ImageId, position: int) -> RemudaError:
    return RemudaError(
        Reason.DIGEST_MISMATCH, f"upload of {image}: the part at {position} is lost or damaged"
    )
