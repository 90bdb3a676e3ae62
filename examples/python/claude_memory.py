"""Claude's memory tool over the STVOR vault: files under /memories are memories of the vault.

    tool = VaultMemoryTool(Vault("agents.sock", credential_file="assistant.cred"), namespace="claude")
    client.beta.messages.run_tools(model=..., messages=[...], tools=[tool])

What an agent writes is checked by the vault (levels, namespaces, secrets), logged, and shown to nobody without a key.
"""

from __future__ import annotations

import posixpath

from anthropic.lib.tools import BetaAbstractMemoryTool, ToolError

from stvor_vault import Named, Vault, VaultError

ROOT = "/memories"


def _path(path: str) -> str:
    """A path below /memories. There are no files behind it, but names that climb out are refused all the same."""
    clean = posixpath.normpath(path)
    if ".." in path.split("/") or (clean != ROOT and not clean.startswith(ROOT + "/")):
        raise ToolError(f"The path {path} does not exist: memory files are below {ROOT}")
    return clean


class VaultMemoryTool(BetaAbstractMemoryTool):
    """`view`, `create`, `str_replace`, `insert`, `delete` and `rename` on memories."""

    def __init__(self, vault: Vault, *, namespace: str, level: int = 1):
        super().__init__()
        self.files = Named(vault, namespace, level)

    def execute(self, command):
        try:
            return super().execute(command)
        except VaultError as error:
            # The model reads what happened and what to do.
            raise ToolError(str(error)) from error

    def _names(self) -> list[str]:
        return sorted({header["metadata"]["name"] for header in self.files.headers()})

    def _below(self, path: str) -> list[str]:
        return [name for name in self._names() if name.startswith(path + "/")]

    def _read(self, path: str) -> str:
        text = self.files.get(_path(path))
        if text is None:
            raise ToolError(f"The path {path} does not exist. Please provide a valid path.")
        return text

    def view(self, command):
        path = _path(command.path)
        below = self._below(path)
        if path == ROOT or below:
            return "\n".join([f"Files in {path}:", *below])
        lines = self._read(path).split("\n")
        first, last = command.view_range or (1, -1)
        last = len(lines) if last == -1 else last
        shown = [f"{number:6}\t{line}" for number, line in enumerate(lines, 1) if first <= number <= last]
        return "\n".join([f"Here's the content of {path} with line numbers:", *shown])

    def create(self, command):
        path = _path(command.path)
        if path == ROOT:
            raise ToolError(f"{ROOT} is a directory")
        self.files.put(path, command.file_text)
        return f"File created successfully at: {path}"

    def str_replace(self, command):
        text = self._read(command.path)
        count = text.count(command.old_str)
        if count != 1:
            raise ToolError(f"old_str appears {count} times in {command.path}; it has to appear once")
        self.files.put(_path(command.path), text.replace(command.old_str, command.new_str))
        return "The memory file has been edited."

    def insert(self, command):
        lines = self._read(command.path).split("\n")
        if not 0 <= command.insert_line <= len(lines):
            raise ToolError(f"insert_line is 0 to {len(lines)} in {command.path}")
        lines[command.insert_line : command.insert_line] = command.insert_text.rstrip("\n").split("\n")
        self.files.put(_path(command.path), "\n".join(lines))
        return f"The file {command.path} has been edited."

    def delete(self, command):
        path = _path(command.path)
        if path == ROOT:
            raise ToolError(f"{ROOT} itself can not be deleted")
        removed = [self.files.remove(name) for name in [path, *self._below(path)]]
        if all(left is None for left in removed):
            raise ToolError(f"The path {command.path} does not exist")
        if left := sum(len(left or []) for left in removed):
            return f"Deleted {path}, but {left} earlier versions that others stored are left: the owner can forget them"
        return f"Successfully deleted {path}"

    def rename(self, command):
        old, new = _path(command.old_path), _path(command.new_path)
        if self.files.header(new) is not None or self._below(new):
            raise ToolError(f"The destination {new} already exists")
        names = [name for name in [old, *self._below(old)] if self.files.header(name) is not None]
        if not names:
            raise ToolError(f"The path {command.old_path} does not exist")
        for name in names:
            self.files.put(new + name[len(old) :], self._read(name))
            self.files.remove(name)
        return f"Successfully renamed {old} to {new}"
