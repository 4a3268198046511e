"""Ed25519 signatures of a bundle's manifest, which names the digest of every other file.

``manifest.sig`` is JSON: the algorithm, the maker's public key and the signature of the manifest's bytes, both in
hexadecimal. Anybody can put a key of their own there, so a signature says who made a bundle only to someone who passes
the key they expect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orthokernels.bundle.manifest import MANIFEST, SIGNATURE
from orthokernels.errors import InputError, need

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def make_keys(private: Path, public: Path) -> str:
    """Write a new pair of keys as PEM, the private one readable by its owner alone; the public key in hexadecimal.

    Raises:
        InputError: one of the files is there already or can't be written, or both are one.
    """
    if private.absolute() == public.absolute():
        raise InputError(f"{private}: would be both keys. Name two files; the public key alone is given away.")
    need("a signature", "cryptography", "runtime")
    import os

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    contents = {
        private: (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600),
        public: (key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644),
    }
    for path in contents:
        if path.exists():
            raise InputError(f"{path}: is there already. A key is never overwritten; choose another name.")
    made: list[Path] = []
    for path, (content, mode) in contents.items():
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                made.append(path)
                file.write(content)
        except OSError as error:
            for own in made:  # half a pair is none, and would be in the way of the next
                own.unlink()
            raise InputError(f"{path}: can't be written ({error.strerror}). Choose another place.") from error
    return _hex(key.public_key())


def sign(folder: Path, key: Path) -> None:
    """Sign the manifest in ``folder`` with a private key (PEM, Ed25519, without a password).

    Raises:
        InputError: the key can't be read.
    """
    private = private_key(key)
    record = {
        "algorithm": "Ed25519",
        "public_key": _hex(private.public_key()),
        "signature": private.sign((folder / MANIFEST).read_bytes()).hex(),
    }
    (folder / SIGNATURE).write_text(json.dumps(record, indent=1) + "\n")


def check_signature(folder: Path, manifest: bytes, key: Path | None = None) -> str | None:
    """The public key, in hexadecimal, that signed ``manifest``; None where there is no signature and no ``key``.

    Raises:
        InputError: the signature is damaged, does not fit the manifest, or is not by ``key``, the public key (PEM) that
            was expected.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        if key is not None:
            raise InputError(f"{folder}: is not signed, and a signature by {key} was asked for.")
        return None
    need("a signed bundle", "cryptography", "runtime")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        record = json.loads(path.read_bytes())
        if record["algorithm"] != "Ed25519":
            raise ValueError(f"the algorithm is {record['algorithm']!r}")
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(record["public_key"]))
        signature = bytes.fromhex(record["signature"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is no Ed25519 signature ({error}). Fetch the bundle again.") from error
    try:
        signer.verify(signature, manifest)
    except InvalidSignature:
        raise InputError(f"{path}: does not fit {MANIFEST}. One of them was changed; fetch the bundle again.") from None
    if key is not None and _hex(signer) != _hex(_public_key(key)):
        raise InputError(f"{path}: the bundle was signed by {_hex(signer)[:16]}..., not by {key}.")
    return _hex(signer)


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def private_key(path: Path) -> Ed25519PrivateKey:
    """A private key, as ``sign`` takes it.

    Raises:
        InputError: it can't be read.
    """
    need("a signature", "cryptography", "runtime")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: can't be read as a private key ({error}). Pass an Ed25519 key as PEM.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is not an Ed25519 key. Make one: orthokernels bundle keygen.")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as a public key ({error}). Pass an Ed25519 key as PEM.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is not an Ed25519 key.")
    return key
