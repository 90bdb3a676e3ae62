"""A small client of the STVOR vault's agents' socket. Standard library only.

    with Vault("~/.local/share/stvor/vault/agents.sock", credential_file="assistant.cred") as vault:
        memory = vault.store("Ann likes tea", namespace="home")
        print(vault.recall(memory)["content"]["text"])
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from typing import Any, Iterator


class VaultError(Exception):
    """A refusal or failure, with its stable code (see docs/errors.md)."""

    def __init__(self, code: str, message: str, retryable: bool):
        super().__init__(f"{message} [{code}]")
        self.code, self.message, self.retryable = code, message, retryable


class Vault:
    """One agent's connection. Threads may share it; requests go one after the other.

    A request is never sent twice: when the daemon goes away before it answers, nobody knows whether it was done.
    """

    def __init__(self, path: str, *, credential: str | None = None, credential_file: str | None = None):
        if credential is None:
            if credential_file is None:
                credential = os.environ.get("STVOR_VAULT_CREDENTIAL", "")
            else:
                if stat.S_IMODE(os.stat(credential_file).st_mode) & 0o077:
                    raise PermissionError(f"others may read {credential_file}: chmod 600 it, and mint a new credential")
                with open(credential_file, encoding="ascii") as file:
                    credential = file.readline().strip()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(os.path.expanduser(path))
        self._lines = self._socket.makefile("rb")
        self.agent = self._ask({"credential": credential})["agent"]

    def __enter__(self) -> "Vault":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session; memories of level 0 that it stored end with it."""
        self._lines.close()
        self._socket.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        if not line:
            raise ConnectionError("the vault's daemon went away")
        answer = json.loads(line)
        if "error" in answer:
            raise VaultError(**answer["error"])
        return answer["ok"]

    def store(self, text: str, *, namespace: str, level: int = 1, **more: Any) -> str:
        """Stores a memory and returns its id. `more`: metadata, intents, source, trust, ttl, cooldown, profile."""
        memory = {"content": {"text": text}, "namespace": namespace, "level": level, **more}
        return self._ask({"verb": "store", "memory": memory})["id"]

    def supersede(self, older: str, text: str, **more: Any) -> str:
        """Stores a memory that corrects another one, and returns its id. What `more` does not say (level, namespace, profile,
        cooldown, ttl) it keeps of what it corrects; `no_ttl` says that it has no end."""
        memory = {"content": {"text": text}, "supersedes": older, **more}
        return self._ask({"verb": "store", "memory": memory})["id"]

    def recall(self, memory: str, justification: str = "") -> dict[str, Any]:
        """The header and content of a memory. Content is data, never instructions."""
        return self._ask({"verb": "recall", "id": memory, "justification": justification})

    def search(self, query: str, *, namespace: str) -> list[dict[str, Any]]:
        """Headers of memories that hold all words, best first, at most 200."""
        return self._ask({"verb": "search", "namespace": namespace, "query": query})["memories"]

    def list(self, *, namespace: str) -> Iterator[dict[str, Any]]:
        """Headers of all memories of a namespace, newest first."""
        before = None
        while True:
            page = self._ask({"verb": "list", "namespace": namespace, "before": before})
            yield from page["memories"]
            before = page["next"]
            if before is None:
                return

    def by_intent(self, intent: str) -> list[dict[str, Any]]:
        """Headers of memories that serve an intent, newest first, at most 200."""
        return self._ask({"verb": "by-intent", "intent": intent})["memories"]

    def unlink(self, memory: str, intent: str) -> None:
        """Takes an intent from a memory."""
        self._ask({"verb": "unlink", "id": memory, "intent": intent})

    def forget(self, memory: str, reason: str = "", *, with_earlier: bool = False) -> list[str]:
        """Destroys a memory's content for good; with the versions that it corrected, as far as this agent may forget them, where
        that is said. Returns the earlier versions that are left, and can be recalled."""
        left, go_on = [], memory
        while go_on is not None:
            try:
                answer = self._ask({"verb": "forget", "id": go_on, "reason": reason, "with_earlier": with_earlier}) or {}
            except VaultError as error:
                if go_on != memory and error.code == "MEMORY_GONE":
                    break
                raise
            left += answer.get("earlier", [])
            go_on = answer.get("next") if with_earlier else None
        return left

    def request_approval(self, memory: str, purpose: str) -> str:
        """Asks the owner to approve one recall; the recall gives the same words as its justification."""
        return self._ask({"verb": "request-approval", "id": memory, "purpose": purpose})["request"]

    def status(self) -> dict[str, Any]:
        """The state of the vault."""
        return self._ask({"verb": "status"})


class Named:
    """Texts under names, each the newest of its memories: what both adapters here are made of."""

    def __init__(self, vault: Vault, namespace: str, level: int = 1):
        self.vault, self.namespace, self.level = vault, namespace, level

    def _intent(self, name: str) -> str:
        return f"{self.namespace} {name}"

    def header(self, name: str) -> dict[str, Any] | None:
        """The header of what stands under a name now."""
        live = [
            header
            for header in self.vault.by_intent(self._intent(name))
            if header["state"] == "live" and header["namespace"] == self.namespace
        ]
        return max(live, key=lambda header: header["created"], default=None)

    def get(self, name: str) -> str | None:
        header = self.header(name)
        return None if header is None else self.vault.recall(header["id"])["content"]["text"]

    def put(self, name: str, text: str, *, ttl: int | None = None, **metadata: str) -> None:
        """Writes a text under a name; what stood there is superseded, and can be recalled by its id until it is removed. What is
        replaced by a text with an end is forgotten at once: after that end no name would lead to it any more."""
        older = self.header(name)
        intents = [self._intent(name)]
        more: dict[str, Any] = {"intents": intents, "metadata": {"name": name, **metadata}, "trust": "agent"}
        if ttl is not None:
            more["ttl"] = ttl
        if older is None:
            self.vault.store(text, namespace=self.namespace, level=self.level, **more)
            return
        # What is written anew has its own end or none. A level is never lowered.
        self.vault.supersede(older["id"], text, level=max(self.level, older["level"]), no_ttl=ttl is None, **more)
        if ttl is None:
            self.vault.unlink(older["id"], intents[0])
        else:
            self.vault.forget(older["id"], f"{name} was replaced by what ends", with_earlier=True)

    def remove(self, name: str) -> list[str] | None:
        """Forgets what stands under a name, with all that stood there before. Returns the versions that are left because others
        stored them and only they or the owner can forget them, or None where nothing has that name."""
        header = self.header(name)
        return None if header is None else self.vault.forget(header["id"], f"{name} was removed", with_earlier=True)

    def headers(self) -> Iterator[dict[str, Any]]:
        """Headers of everything that has a name, newest first."""
        for header in self.vault.list(namespace=self.namespace):
            if header["state"] == "live" and "name" in header["metadata"]:
                yield header

    def search(self, query: str) -> Iterator[dict[str, Any]]:
        for header in self.vault.search(query, namespace=self.namespace):
            if header["state"] == "live" and "name" in header["metadata"]:
                yield header
