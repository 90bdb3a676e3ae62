"""Reads a STVOR vault without STVOR, as docs/vault/recovery.md describes it.

Usage: recover.py BACKUP.age IDENTITY-FILE PASSPHRASE
Prints one JSON object a line: id, level, text. Needs cryptography, argon2-cffi and pyrage from PyPI.
"""

import io
import json
import sqlite3
import struct
import sys
import tarfile
import tempfile

import argon2.low_level
import pyrage
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf(key, info, length=32, salt=None):
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def unseal(key, place, sealed):
    """Step 5: a nonce of 12 bytes, then AES-256-GCM."""
    return AESGCM(key).decrypt(sealed[:12], sealed[12:], place)


def unseal_row(key, place, sealed):
    """Step 4: one of 256 keys; the key itself for what version 2 wrote."""
    number = 0
    for byte in place:
        number ^= byte
    try:
        return unseal(hkdf(key, b"STVOR vault row key " + struct.pack(">H", number)), place, sealed)
    except InvalidTag:
        return unseal(key, place, sealed)


def unwrap(record, passphrase, context):
    """Steps 2 and 3."""
    version, kind, length = struct.unpack(">BBI", record[:6])
    assert (version, kind) == (1, 1), "a key record of version 1 for a passphrase"
    parameters, rest = record[6:6 + length], record[6 + length:]
    memory, passes, lanes = struct.unpack(">III", parameters[:12])
    key = argon2.low_level.hash_secret_raw(
        passphrase, parameters[12:28], passes, memory, lanes, 32, argon2.low_level.Type.ID)
    ad = b"STVOR wrapped key v1" + record[:6] + parameters + struct.pack(">I", len(context)) + context
    derived = hkdf(key, ad, 48)
    assert derived[32:] == rest[:16], "the passphrase is another one"
    return AESGCM(derived[:32]).decrypt(rest[16:28], rest[28:76], ad)


def bound(header):
    """Step 7: what is authenticated with a content."""
    everything = 2 ** 64 - 1
    text = lambda value: struct.pack(">I", len(value.encode())) + value.encode()
    expires = everything if header["expires"] is None else header["expires"]
    return (b"STVOR memory v1" + bytes.fromhex(header["id"].replace("-", "")) + bytes([header["level"]])
            + text(header["namespace"]) + struct.pack(">QQQ", expires, header["cooldown"], header["created"])
            + text(header["creator"]) + struct.pack(">Q", header["length"]))


def open_wrapped(wrapped, private, ad):
    """Step 7, levels 2 and up."""
    ephemeral, body = wrapped[:65], wrapped[65:]
    key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), ephemeral)
    shared = key.exchange(ec.ECDH(), peer)
    numbers = key.public_key().public_numbers()
    public = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    info = b"STVOR vault level key v1" + ephemeral + public + struct.pack(">I", len(ad)) + ad
    return AESGCM(hkdf(shared, info)).decrypt(b"\0" * 12, body, ad)


def main():
    backup, identity, passphrase = sys.argv[1], open(sys.argv[2]).read().strip(), sys.argv[3].encode()
    plain = pyrage.decrypt(open(backup, "rb").read(), [pyrage.x25519.Identity.from_str(identity)])
    with tempfile.NamedTemporaryFile() as file:
        archive = tarfile.open(fileobj=io.BytesIO(plain))
        file.write(archive.extractfile("vault.db").read())
        file.flush()
        database = sqlite3.connect(file.name)
        slots = dict(database.execute("SELECT name, record FROM slot"))
        root = unwrap(slots["owner/root"], passphrase, b"STVOR vault root key v1")
        derive = lambda purpose: hkdf(root, purpose.encode(), salt=b"STVOR vault v1")
        rows, working = derive("rows"), derive("levels 0 and 1")
        privates = {level: unseal(derive(name), f"level-{level}/private".encode(), slots[f"level-{level}/private"])
                    for level, name in [(2, "private"), (3, "sealed")]}
        query = "SELECT id, header, wrapped, content FROM memory ORDER BY seq"
        for name, sealed, wrapped, content in database.execute(query):
            header = json.loads(unseal_row(rows, name, sealed))
            if wrapped is None or header["level"] > 3:
                continue
            ad = bound(header)
            if header["level"] <= 1:
                key = unseal_row(working, ad, wrapped)
            else:
                key = open_wrapped(wrapped, privates[header["level"]], ad)
            text = AESGCM(key).decrypt(b"\0" * 12, content, ad).decode()
            print(json.dumps({"id": header["id"], "level": header["level"], "text": text}))


main()
