"""Page tokens: the revision that the pages show, the last key, and a digest of the query.

A token is no secret and grants nothing: the caller's rights are looked at again with every page, and it can
only say where in the list to go on. Anybody can make one, so that nothing in it is believed.
"""

import base64
import hashlib
import json
from dataclasses import dataclass

from remuda_core.errors import Reason, RemudaError

_MAX_CHARACTERS = 2048
_MAX_REVISION = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PageToken:
    revision: int
    last_key: str
    query: str
    """From `query_digest`: a token is good for the query that it came from."""


def query_digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def encode(token: PageToken) -> str:
    text = json.dumps([token.revision, token.last_key, token.query], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str, *, query: str, prefix: str) -> PageToken:
    """`prefix`: of the keys that the query lists. Raises RemudaError PAGE_TOKEN_INVALID."""
    if len(text) > _MAX_CHARACTERS:
        raise _damaged()
    try:
        revision, last_key, digest = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        # A lone surrogate is a str that has no UTF-8.
        last_key.encode()
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged() from error
    if type(revision) is not int or not 0 < revision <= _MAX_REVISION or not isinstance(last_key, str):
        raise _damaged()
    if digest != query:
        raise RemudaError(Reason.PAGE_TOKEN_INVALID, "the page token belongs to another query")
    # From a key before the prefix etcd would go on through everything that lies between.
    if not last_key.startswith(prefix):
        raise _damaged()
    return PageToken(revision=revision, last_key=last_key, query=query)


def _damaged() -> RemudaError:
    return RemudaError(Reason.PAGE_TOKEN_INVALID, "the page token is damaged")
