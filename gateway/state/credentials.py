"""
Who is calling, as a keyed hash: enough to tell callers apart, nothing to learn a secret from (S6, L3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gateway.http.headers import Headers

ALWAYS = (b"authorization", b"cookie")


class CredentialFingerprints:
    def __init__(self, upstream: str, headers: Iterable[str] = (), *, key: bytes) -> None:
        """
        `headers`: what authenticates beside Authorization and Cookie. Processes with one `key` have one
        fingerprint for a caller; whoever does not have it can't find out whose it is.
        """
        if not 16 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError("a fingerprint's key has 16 to 64 bytes")
        self._names = frozenset(ALWAYS) | {name.lower().encode() for name in headers}
        self._key = key
        # RFC 9111 section 4: the same target on another upstream is another resource.
        self._upstream = upstream.encode()

    def of(self, headers: Headers) -> str:
        digest = hashlib.blake2b(self._upstream, digest_size=16, key=self._key)
        for name, value in headers:
            if name in self._names:
                # Lengths keep two headers from being read as one.
                digest.update(b"\n%d:%s=%d:" % (len(name), name, len(value)))
                digest.update(value)
        return digest.hexdigest()
