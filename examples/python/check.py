"""Uses both adapters against a vault that runs: check.py SOCKET CREDENTIAL_FILE. The tests of the command run it."""

import sys

from stvor_vault import Vault, VaultError


def claude(vault: Vault) -> None:
    from anthropic.lib.tools import ToolError

    from claude_memory import VaultMemoryTool

    tool = VaultMemoryTool(vault, namespace="graph/claude")

    def run(command: str, **more):
        return tool.call({"command": command, **more})

    run("create", path="/memories/tea.md", file_text="Ann likes tea\nat five")
    assert "Ann likes tea" in run("view", path="/memories/tea.md")
    assert "/memories/tea.md" in run("view", path="/memories")
    run("str_replace", path="/memories/tea.md", old_str="five", new_str="six")
    run("insert", path="/memories/tea.md", insert_line=1, insert_text="green tea\n")
    assert tool.files.get("/memories/tea.md") == "Ann likes tea\ngreen tea\nat six"
    assert "at six" not in run("view", path="/memories/tea.md", view_range=[1, 2])
    run("rename", old_path="/memories/tea.md", new_path="/memories/ann/tea.md")
    run("delete", path="/memories/ann")
    # Nor is anything left of what it said before.
    assert list(vault.list(namespace="graph/claude")) == []
    for command in [
        {"command": "view", "path": "/memories/ann/tea.md"},
        {"command": "view", "path": "/memories/../etc/passwd"},
        {"command": "create", "path": "/memories/x", "file_text": "the password is hunter22"},
    ]:
        try:
            tool.call(command)
        except ToolError:
            continue
        raise AssertionError(command)


def langgraph(vault: Vault) -> None:
    from langgraph_store import VaultStore

    store = VaultStore(vault, prefix="graph")
    store.put(("users", "ann"), "drink", {"text": "likes green tea", "sure": True})
    store.put(("users", "bob"), "drink", {"text": "likes coffee"})
    item = store.get(("users", "ann"), "drink")
    assert item.value == {"text": "likes green tea", "sure": True}, item
    store.put(("users", "ann"), "drink", {"text": "likes black tea"})
    newer = store.get(("users", "ann"), "drink")
    assert newer.value == {"text": "likes black tea"} and newer.created_at == item.created_at
    assert [found.key for found in store.search(("users",), query="tea")] == ["drink"]
    assert len(store.search(("users",))) == 2
    assert [found.namespace for found in store.search(("users",), filter={"text": "likes coffee"})] == [("users", "bob")]
    assert store.list_namespaces(prefix=("users",)) == [("users", "ann"), ("users", "bob")]
    # Who calls itself "users/ann" is not ("users", "ann"), and no namespace is the store's own list of namespaces.
    for other in [("users/ann",), ("users%2Fann",), ("users", "ann/drink")]:
        assert store.get(other, "drink") is None, other
        store.put(other, "drink", {"text": f"of {other}"})
        assert store.get(other, "drink").value == {"text": f"of {other}"}
    assert store.get(("users", "ann"), "drink").value == {"text": "likes black tea"}
    for name in ["namespaces", "%", "*"]:
        store.put((name,), "x", {"text": "of my own"})
    assert ("%",) in store.list_namespaces() and ("users", "ann") in store.list_namespaces()
    assert len(store.search(("users",))) == 3
    store.put(("users", "bob"), "drink", {"text": "likes cocoa"}, ttl=60)
    assert len(list(vault.list(namespace="graph/users/bob"))) == 1, "what has an end leaves nothing older behind it"
    store.delete(("users", "ann"), "drink")
    assert store.get(("users", "ann"), "drink") is None
    assert list(vault.list(namespace="graph/users/ann")) == [], "nor what was there before"


def main() -> None:
    with Vault(sys.argv[1], credential_file=sys.argv[2]) as vault:
        assert vault.status()["mode"] == "open"
        try:
            vault.store("out of reach", namespace="elsewhere")
        except VaultError as error:
            assert error.code == "AGENT_NOT_ALLOWED", error
        else:
            raise AssertionError("another namespace was written")
        for check in [claude, langgraph]:
            check(vault)
            print(f"{check.__name__} ok")


if __name__ == "__main__":
    main()
