"""Page tokens: the revision that the pages show, the last key, and a digest of the query.

A token is no secret and grants nothing: the caller's rights are looked at again with every page.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass

from remuda_core.errors import Reason, RemudaError


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


def decode(text: str, *, query: str) -> PageToken:
    """Raises RemudaError PAGE_TOKEN_INVALID."""
    try:
        revision, last_key, digest = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError, binascii.Error) as error:
        raise RemudaError(Reason.PAGE_TOKEN_INVALID, "the page token is damaged") from error
    if not isinstance(revision, int) or revision <= 0 or not isinstance(last_key, str):
        raise RemudaError(Reason.PAGE_TOKEN_INVALID, "the page token is damaged")
    if digest != query:
        raise RemudaError(Reason.PAGE_TOKEN_INVALID, "the page token belongs to another query")
    return PageToken(revision=revision, last_key=last_key, query=query)
