"""What was read lately, within a bound on all of it together."""

from collections import OrderedDict
from collections.abc import Hashable, Sized
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class Lately(Generic[K, V]):
    """Values weigh their length. The one that was put last stays, whatever it weighs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        # Weighed anew each time: values may have grown.
        weight = sum(map(len, self._values.values()))
        while weight > self._most and len(self._values) > 1:
            weight -= len(self._values.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        self._values.pop(key, None)
