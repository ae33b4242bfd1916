"""On which line of a TOML text a key stands: `tomllib` tells that of what cannot be read alone, and not of what is read and wrong."""

from __future__ import annotations

import tomllib

Path = tuple[str | int, ...]
_BARE_END = " \t\r\n=.]#"
_VALUE_END = ",]}\n#"


def find(text: str) -> dict[Path, int]:
    """Return the lines of a text that `tomllib` reads: of every table, key and element of a list, by its path.

    A table that is opened again, or in parts, has its first line. Of lists of tables the elements are not told apart.
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


def nearest(lines: dict[Path, int], path: Path) -> int:
    """Return the line of what a path names, or of the nearest thing around it that has one; 1 where nothing has."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


class _Scan:
    """Walks a text from its beginning to its end; that it is valid is known."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._past_blanks(newlines=True) < len(self.text):
            if self._next() == "[":
                self.at += 2 if self.text.startswith("[[", self.at) else 1
                table = self._key(())
                self.at += 2 if self.text.startswith("]]", self.at) else 1
            else:
                self._pair(table)

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _past_blanks(self, *, newlines: bool) -> int:
        """Go past spaces and comments, and line ends where they mean nothing; return where that is."""
        while self.at < len(self.text):
            if self._next() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self._next() in " \t" or (newlines and self._next() in "\r\n"):
                self.at += 1
            else:
                break
        return self.at

    def _pair(self, table: Path) -> None:
        path = self._key(table)
        self.at += 1  # the equals sign
        self._value(path)

    def _key(self, table: Path) -> Path:
        """Read a key with its dots, note the line of each part, and go to what follows it."""
        path = table
        while True:
            self._past_blanks(newlines=False)
            begun = self.at
            if self._next() in ('"', "'"):
                self._string()
                part = next(iter(tomllib.loads(f"{self.text[begun : self.at]} = 0")))
            else:
                while self._next() and self._next() not in _BARE_END:
                    self.at += 1
                part = self.text[begun : self.at]
            path = (*path, part)
            self._note(path, begun)
            self._past_blanks(newlines=False)
            if self._next() != ".":
                return path
            self.at += 1

    def _note(self, path: Path, position: int) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, position) + 1)

    def _value(self, path: Path) -> None:
        self._past_blanks(newlines=False)
        if self._next() in ('"', "'"):
            self._string()
        elif self._next() == "[":
            self._list(path)
        elif self._next() == "{":
            self._inline(path)
        else:
            while self._next() and self._next() not in _VALUE_END:
                self.at += 1

    def _list(self, path: Path) -> None:
        self.at += 1
        number = 0
        while self._next_after_blanks() not in ("]", ""):
            if self._next() == ",":
                self.at += 1
                continue
            self._note((*path, number), self.at)
            self._value((*path, number))
            number += 1
        self.at += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while self._next_after_blanks() not in ("}", ""):
            if self._next() == ",":
                self.at += 1
                continue
            self._pair(path)
        self.at += 1

    def _next_after_blanks(self) -> str:
        self._past_blanks(newlines=True)
        return self._next()

    def _string(self) -> None:
        quote = self._next()
        long = self.text.startswith(quote * 3, self.at)
        self.at += 3 if long else 1
        while self._next() != quote or (long and not self.text.startswith(quote * 3, self.at)):
            self.at += 2 if self._next() == "\\" and quote == '"' else 1
        self.at += 3 if long else 1
        while long and self._next() == quote:  # one or two quotes may stand right before the three that end it
            self.at += 1
