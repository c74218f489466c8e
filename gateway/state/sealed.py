"""
What lies in a store elsewhere: under names that tell nothing, and sealed with a key of the caller's own.

A caller's fingerprint (credentials.py) is a keyed hash of all that authenticates, and is itself never stored:
the name is one hash of it, the key another. So who reads the store has neither, and who has one caller's key
can open nothing of another's (S6).
"""

from __future__ import annotations

import hashlib
import secrets
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE = 12  # bytes
CALLERS_KEPT = 4_096

_encoded = msgspec.msgpack.Encoder().encode


class Sealed:
    def __init__(self, key: bytes) -> None:
        """`key`: that of the deployment, the same for all its processes."""
        self._named = hashlib.blake2b(digest_size=16, key=hashlib.sha256(key).digest())
        self._key = key
        self._sealing = lru_cache(CALLERS_KEPT)(self._key_of)

    def name(self, *parts: object) -> str:
        """For a key in the store: a conversation's name or a caller's can't be found out from it."""
        digest = self._named.copy()
        digest.update(_encoded(parts))
        return digest.hexdigest()

    def _key_of(self, credential: str) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, self._key, b"gateway reading").derive(credential.encode()))

    def seal(self, credential: str, content: bytes, about: bytes) -> bytes:
        """`about` has to be the same when it is opened: the place that it is for."""
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._sealing(credential).encrypt(nonce, content, about)

    def open(self, credential: str, sealed: bytes, about: bytes) -> bytes | None:
        """None where it was not sealed so."""
        try:
            return self._sealing(credential).decrypt(sealed[:NONCE], sealed[NONCE:], about)
        except (InvalidTag, ValueError):
            return None
