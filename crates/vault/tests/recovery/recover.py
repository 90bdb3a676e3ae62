"""Reads a STVOR vault without STVOR, as docs/vault/recovery.md describes it.

Usage: recover.py (--identity FILE | --backup-passphrase-file FILE)
                  (--passphrase-file FILE | --keyfile FILE | --share FILE --share FILE ...)
                  [--second-passphrase-file FILE | --second-keyfile FILE]
                  [--profile-passphrase-file NAME=FILE] [--profile-keyfile NAME=FILE]
                  [--tokens | --token-answer NAME=FILE | --token-keyfile NAME=FILE] FULL.age [INCREMENTAL.age ...]

The passphrase is the owner's, or the recovery passphrase of a vault whose key a TPM or a token gives.
Level 5 takes what a token answers (--token-answer, in hexadecimal digits) to what --tokens says that it is asked, or the keyfile that
plays the token (--token-keyfile).
Prints one JSON object a line: id, level, and text, or base64 of what is no text in UTF-8. What does not open is named on
standard error with the reason, and the script ends with 1. Needs cryptography, argon2-cffi and pyrage from PyPI.
"""

import argparse
import base64
import collections
import hashlib
import hmac
import io
import json
import os
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

PASSPHRASE, KEYFILE, TPM, TOKEN = 1, 2, 4, 9
LABEL = b"STVOR vault v1"


def hkdf(key, info, length=32, salt=None):
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def first_line(path):
    return read(path).split(b"\n")[0]


def field(data, at):
    """A length (4 bytes) and so many bytes. Returns them, and where the next field begins."""
    (length,) = struct.unpack_from(">I", data, at)
    return data[at + 4:at + 4 + length], at + 4 + length


def text(value):
    return struct.pack(">I", len(value.encode())) + value.encode()


# Step 1.

def opener(identity, passphrase_file):
    """What opens the age files: keys in a file as age-keygen writes it, with words after #, or a passphrase."""
    if passphrase_file:
        return lambda sealed: pyrage.passphrase.decrypt(sealed, first_line(passphrase_file).decode())
    keys = [line for line in read(identity).decode().splitlines() if line.startswith("AGE-SECRET-KEY-1")]
    assert keys, f"there is no age key (AGE-SECRET-KEY-1...) in {identity}"
    identities = [pyrage.x25519.Identity.from_str(key) for key in keys]
    return lambda sealed: pyrage.decrypt(sealed, identities)


def open_backups(paths, decrypt, directory):
    """The full backup's database, with the rows of those that build on it."""
    databases = []
    for number, path in enumerate(paths):
        archive = tarfile.open(fileobj=io.BytesIO(decrypt(read(path))))
        name = os.path.join(directory, f"{number}.db")
        with open(name, "wb") as file:
            file.write(archive.extractfile("vault.db").read())
        databases.append(sqlite3.connect(name))
    full, later = databases[0], databases[1:]
    for changes in later:
        tables = changes.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables.fetchall():
            if table not in ("event", "node", "memory", "fresh"):
                full.execute(f"DELETE FROM {table}")
            for row in changes.execute(f"SELECT * FROM {table}"):
                full.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    return full


# Steps 2 and 3.

class Passphrase:
    def __init__(self, secret):
        self.secret = secret

    def key(self, kind, parameters):
        if kind == PASSPHRASE:
            memory, passes, lanes = struct.unpack(">III", parameters[:12])
            return argon2.low_level.hash_secret_raw(
                self.secret, parameters[12:28], passes, memory, lanes, 32, argon2.low_level.Type.ID)
        # Of a TPM or a token: the passphrase opens a record of its own in the parameters.
        assert parameters[0] == 1, "parameters of version 1"
        if kind == TPM:
            at = 5
            for _ in ("private half", "public half"):
                _, at = field(parameters, at)
            context = b"STVOR TPM recovery v1"
        else:
            assert kind == TOKEN, f"a key of kind {kind} opens with no passphrase"
            _, at = field(parameters, 34)
            context = b"STVOR token recovery v1"
        recovery, _ = field(parameters, at)
        assert recovery, "no recovery passphrase was set for this key"
        return unwrap(recovery, self, context)


class Keyfile:
    def __init__(self, secret):
        assert len(secret) == 32, "a keyfile has 32 bytes"
        self.secret = secret

    def key(self, kind, parameters):
        assert (kind, parameters) == (KEYFILE, b""), f"a key of kind {kind} opens with no keyfile"
        return self.secret


def unwrap(record, secret, context):
    assert hashlib.sha256(record[:-16]).digest()[:16] == record[-16:], "the record is damaged"
    version, kind = record[:2]
    assert version == 1, "a key record of version 1"
    parameters, at = field(record, 2)
    check, nonce, sealed = record[at:at + 16], record[at + 16:at + 28], record[at + 28:at + 76]
    ad = b"STVOR wrapped key v1" + record[:at] + struct.pack(">I", len(context)) + context
    derived = hkdf(secret.key(kind, parameters), ad, 48)
    assert derived[32:] == check, "the secret is another one"
    return AESGCM(derived[:32]).decrypt(nonce, sealed, ad)


# Steps 4 to 8.

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


def bound(header):
    """Step 7: what is authenticated with a content."""
    everything = 2 ** 64 - 1
    expires = everything if header["expires"] is None else header["expires"]
    out = (b"STVOR memory v1" + bytes.fromhex(header["id"].replace("-", "")) + bytes([header["level"]])
           + text(header["namespace"]) + struct.pack(">QQQ", expires, header["cooldown"], header["created"])
           + text(header["creator"]) + struct.pack(">Q", header["length"]))
    profile = header.get("profile")
    return out + text(profile) if profile else out


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


class Profiles:
    """Step 7, profiles: their keys, as far as there is a secret for them."""

    def __init__(self, slots, secrets, private):
        self.slots, self.secrets, self.private = slots, secrets, private

    def key(self, name):
        slot = f"profile/{name}/key"
        if name in self.secrets:
            return unwrap(self.slots[slot], self.secrets[name], b"STVOR vault profile v1 " + name.encode())
        # The owner's session opens it: it begins with a point of the curve.
        assert self.slots[slot][0] == 4, f"the profile {name} has a secret of its own, and it was not given"
        return open_wrapped(self.slots[slot], self.private, slot.encode())

    def open(self, name, wrapped, ad):
        generation = wrapped[:4]
        slot = f"profile/{name}/private/{int.from_bytes(generation, 'big')}"
        private = unseal(self.key(name), slot.encode(), self.slots[slot])
        return open_wrapped(wrapped[4:], private, b"STVOR vault profile memory v1" + text(name) + generation + ad)


# Step 9.

def multiply(a, b):
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11b if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a):
    return next(b for b in range(1, 256) if multiply(a, b) == 1)


def combine(paths):
    shares, needed, the_set = {}, None, None
    for path in paths:
        lines = dict(line.split(": ", 1) for line in read(path).decode().splitlines() if ": " in line)
        number, rest = lines["share"].split(" of ")
        shares[int(number)] = bytes.fromhex(lines["data"])
        needed, the_set = int(rest.split(", ")[1].split(" ")[0]), bytes.fromhex(lines["set"])
    assert len(shares) >= needed, f"{needed} shares are needed"
    whole = bytearray(len(next(iter(shares.values()))))
    for own, data in shares.items():
        factor = 1
        for other in shares:
            if other != own:
                factor = multiply(factor, multiply(other, inverse(other ^ own)))
        for place, byte in enumerate(data):
            whole[place] ^= multiply(factor, byte)
    check, secret = bytes(whole[:16]), bytes(whole[16:])
    assert check == hkdf(secret, b"STVOR share check v1", 16, the_set), "the shares do not fit together"
    return secret, the_set.hex()


# Step 10.

def token_records(slots, rows):
    return json.loads(unseal_row(rows, b"tokens", slots["tokens"])) if "tokens" in slots else []


def question(token):
    ((kind, asked),) = token["kind"].items()
    return {"token": token["name"], "kind": kind} | {
        name: bytes(asked[name]).hex() for name in ("challenge", "credential", "salt") if name in asked}


def answer(token, answers, keyfiles):
    ((kind, asked),) = token["kind"].items()
    name = token["name"]
    if name in keyfiles:
        assert kind == "challenge", f"no keyfile plays the token {name}"
        answered = hmac.digest(read(keyfiles[name]), bytes(asked["challenge"]), "sha256")
    else:
        answered = bytes.fromhex(first_line(answers[name]).decode())
    return answered if kind == "fido2" else hkdf(answered, b"STVOR challenge token v1")


def open_level_5(slots, vaulted, name, secret):
    """The private key of level 5; `name` is that of the token's record, or of the set of shares."""
    assert vaulted, "level 5 takes the second secret, too"
    slot = f"level-5/private/{name}"
    key = hkdf(hkdf(vaulted, b"level 5", salt=LABEL) + secret, f"level 5 token {name}".encode(), salt=LABEL)
    try:
        return unseal(key, slot.encode(), slots[slot])
    except InvalidTag:
        raise ValueError("the answer of the token, or the second secret, is another one") from None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backup = parser.add_mutually_exclusive_group(required=True)
    backup.add_argument("--identity")
    backup.add_argument("--backup-passphrase-file")
    parser.add_argument("backups", nargs="+")
    owner = parser.add_mutually_exclusive_group(required=True)
    second = parser.add_mutually_exclusive_group()
    for group, prefix in ((owner, ""), (second, "second-")):
        group.add_argument(f"--{prefix}passphrase-file")
        group.add_argument(f"--{prefix}keyfile")
    owner.add_argument("--share", action="append", default=[])
    parser.add_argument("--profile-passphrase-file", action="append", default=[])
    parser.add_argument("--profile-keyfile", action="append", default=[])
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--token-answer", action="append", default=[])
    parser.add_argument("--token-keyfile", action="append", default=[])
    return parser.parse_args()


def secret_of(passphrase_file, keyfile):
    if passphrase_file:
        return Passphrase(first_line(passphrase_file))
    return Keyfile(read(keyfile)) if keyfile else None


def content_of(words):
    try:
        return {"text": words.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(words).decode()}


def open_memory(row, keys, privates, profiles, without):
    """Steps 4 to 8 for one memory. Returns nothing for what was forgotten, or is of a level without a key, which it counts."""
    name, sealed, wrapped, content = row
    rows, working = keys
    header = json.loads(unseal_row(rows, name, sealed))
    level, ad = header["level"], bound(header)
    if wrapped is None:
        return None
    if level > 1 and level not in privates:
        without[level] += 1
        return None
    if header.get("profile"):
        wrapped = profiles.open(header["profile"], wrapped, ad)
    key = unseal_row(working, ad, wrapped) if level <= 1 else open_wrapped(wrapped, privates[level], ad)
    return {"id": header["id"], "level": level} | content_of(AESGCM(key).decrypt(b"\0" * 12, content, ad))


def main():
    args = arguments()
    owner = secret_of(args.passphrase_file, args.keyfile)
    second = secret_of(args.second_passphrase_file, args.second_keyfile)
    named = lambda all: (one.split("=", 1) for one in all)
    secrets = {name: Passphrase(first_line(path)) for name, path in named(args.profile_passphrase_file)}
    secrets |= {name: Keyfile(read(path)) for name, path in named(args.profile_keyfile)}
    with tempfile.TemporaryDirectory() as directory:
        database = open_backups(args.backups, opener(args.identity, args.backup_passphrase_file), directory)
        slots = dict(database.execute("SELECT name, record FROM slot"))
        vaulted, escrow = None, None
        if args.share:
            keys, the_set = combine(args.share)
            root, vaulted = keys[:32], keys[32:64] or None
            escrow = (f"escrow-{the_set}", keys[64:96]) if keys[64:] else None
        else:
            root = unwrap(slots["owner/root"], owner, b"STVOR vault root key v1")
        if second:
            assert "vaulted" in slots, "this vault has no second secret"
            vaulted = unwrap(slots["vaulted"], second, b"STVOR vault level 4 key v1")
        derive = lambda purpose: hkdf(root, purpose.encode(), salt=LABEL)
        rows, working = derive("rows"), derive("levels 0 and 1")
        under = {2: derive("private"), 3: derive("sealed")} | ({4: vaulted} if vaulted else {})
        privates = {level: unseal(key, f"level-{level}/private".encode(), slots[f"level-{level}/private"])
                    for level, key in under.items()}
        tokens = token_records(slots, rows)
        if args.tokens:
            for token in tokens:
                print(json.dumps(question(token)))
            return 0
        answers, keyfiles = dict(named(args.token_answer)), dict(named(args.token_keyfile))
        for name in {**answers, **keyfiles}:
            token = next((token for token in tokens if token["name"] == name), None)
            assert token, f"there is no token {name}"
            privates[5] = open_level_5(slots, vaulted, token["id"], answer(token, answers, keyfiles))
        # Of older shares a newer set took it.
        if escrow and f"level-5/private/{escrow[0]}" in slots:
            privates[5] = open_level_5(slots, vaulted, *escrow)
        profiles = Profiles(slots, secrets, privates[2])
        query = "SELECT id, header, wrapped, content FROM memory ORDER BY seq"
        failed, without = False, collections.Counter()
        for row in database.execute(query):
            # One that does not open keeps nobody from the others.
            try:
                found = open_memory(row, (rows, working), privates, profiles, without)
            except Exception as error:
                failed = True
                print(f"{row[0].hex()}: {str(error) or type(error).__name__}", file=sys.stderr)
                continue
            if found:
                print(json.dumps(found))
        for level, count in sorted(without.items()):
            print(f"left out, memories of level {level}: {count}; what was given opens no key of it", file=sys.stderr)
        return 1 if failed else 0


try:
    sys.exit(main())
except Exception as error:
    sys.exit(f"error: {str(error) or type(error).__name__}")
