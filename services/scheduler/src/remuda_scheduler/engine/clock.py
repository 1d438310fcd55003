"""Wall-clock time as records carry it."""

from google.protobuf.timestamp_pb2 import Timestamp


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
