"""A LangGraph store over the STVOR vault: items of a graph's long-term memory are memories of the vault.

    store = VaultStore(Vault("agents.sock", credential_file="assistant.cred"), prefix="graph")
    graph = builder.compile(store=store)

A LangGraph namespace ("users", "ann") is the vault's namespace graph/users/ann, so the agent has to be enrolled for
`graph/*`. Each part is percent-encoded, so no part, whatever a tenant calls itself, reaches into the namespace of another.
Search is by words (the vault's full-text index), not by embeddings.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from datetime import datetime, timezone
from typing import Any, Iterable
from urllib.parse import quote

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    NamespacePath,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)

from stvor_vault import Named, Vault, VaultError

# No encoded part is this: there two digits follow each percent sign.
INDEX = "%"
# What keeps one item from being given out says nothing of the others.
WITHHELD = {"AUDITOR_REFUSED", "MEMORY_GONE", "VAULT_LOCKED"}


def _time(millis: int) -> datetime:
    return datetime.fromtimestamp(millis / 1000, tz=timezone.utc)


class VaultStore(BaseStore):
    """`get`, `put`, `delete`, `search` and `list_namespaces` on memories."""

    supports_ttl = True
    __slots__ = ("vault", "prefix", "level")

    def __init__(self, vault: Vault, *, prefix: str = "graph", level: int = 1):
        self.vault, self.prefix, self.level = vault, prefix, level

    def _items(self, namespace: tuple[str, ...]) -> Named:
        parts = [quote(part, safe="") for part in namespace]
        return Named(self.vault, "/".join([self.prefix, *parts]), self.level)

    def _spaces(self) -> Named:
        """The names of all namespaces: the vault lists memories of a namespace, not namespaces."""
        return Named(self.vault, f"{self.prefix}/{INDEX}", self.level)

    def _known(self) -> list[tuple[str, ...]]:
        return sorted({tuple(json.loads(header["metadata"]["name"])) for header in self._spaces().headers()})

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return [self._one(op) for op in ops]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await asyncio.to_thread(self.batch, list(ops))

    def _one(self, op: Op) -> Result:
        match op:
            case GetOp():
                return self._item(op.namespace, self._items(op.namespace).header(op.key))
            case PutOp():
                return self._put(op)
            case SearchOp():
                return self._search(op)
            case ListNamespacesOp():
                return self._list(op)
        raise NotImplementedError(type(op))

    def _item(self, namespace: tuple[str, ...], header: dict[str, Any] | None, kind: type = Item) -> Any:
        if header is None:
            return None
        value = json.loads(self.vault.recall(header["id"])["content"]["text"])
        times = {
            "created_at": _time(int(header["metadata"].get("first", header["created"]))),
            "updated_at": _time(header["created"]),
        }
        return kind(namespace=namespace, key=header["metadata"]["name"], value=value, **times)

    def _put(self, op: PutOp) -> None:
        items = self._items(op.namespace)
        if op.value is None:
            if left := items.remove(op.key):
                warnings.warn(f"{len(left)} earlier versions of {op.key!r} that others stored are left; the owner can forget them")
            return
        spaces, name = self._spaces(), json.dumps(op.namespace)
        if spaces.header(name) is None:
            spaces.put(name, f"namespace {name}")
        older = items.header(op.key)
        first = {} if older is None else {"first": older["metadata"].get("first", str(older["created"]))}
        ttl = None if op.ttl is None else max(1, round(op.ttl * 60))
        items.put(op.key, json.dumps(op.value), ttl=ttl, **first)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        found: list[SearchItem] = []
        for namespace in self._known():
            if namespace[: len(op.namespace_prefix)] != op.namespace_prefix:
                continue
            items = self._items(namespace)
            headers = items.search(op.query) if op.query else items.headers()
            for header in headers:
                try:
                    found.append(self._item(namespace, header, SearchItem))
                except VaultError as error:
                    if error.code not in WITHHELD:
                        raise
                    warnings.warn(f"the item {header['metadata']['name']!r} of {namespace} is withheld: {error}")
        if op.filter:
            found = [item for item in found if all(item.value.get(k) == v for k, v in op.filter.items())]
        return found[op.offset : op.offset + op.limit]

    def _list(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        def fits(namespace: tuple[str, ...], where: str, path: NamespacePath) -> bool:
            part = namespace[: len(path)] if where == "prefix" else namespace[-len(path) :]
            return len(part) == len(path) and all(b in ("*", a) for a, b in zip(part, path))

        rules = op.match_conditions or ()
        known = [ns for ns in self._known() if all(fits(ns, rule.match_type, rule.path) for rule in rules)]
        if op.max_depth is not None:
            known = sorted({namespace[: op.max_depth] for namespace in known})
        return known[op.offset : op.offset + op.limit]
