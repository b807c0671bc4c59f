"""The SSH keys of a machine, derived from one secret and the machine's name.

Whoever holds the secret can compute both the key that opens a machine and the host key that the
machine must show: before the machine exists and at any time after, also in another process on
another worker. So no task has to hand a key to the next, no key lies in a file, and a task that is
run twice derives the same keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair in OpenSSH's formats. The public key is one line, with a comment."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


@dataclass(frozen=True, slots=True)
class SshIdentity:
    """The keys by which a machine and its client recognise each other."""

    client: KeyPair
    host: KeyPair

    @classmethod
    def derive(cls, secret: str, machine: str) -> SshIdentity:
        """Derive the identity of the machine of that name."""
        return cls(
            client=_key_pair(secret, machine, "client"), host=_key_pair(secret, machine, "host")
        )


def _key_pair(secret: str, machine: str, purpose: str) -> KeyPair:
    info = f"kestra-bridge machine {purpose}: {machine}".encode()
    seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret.encode())
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return KeyPair(private, f"{public} {machine}-{purpose}")
