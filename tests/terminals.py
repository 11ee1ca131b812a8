"""A terminal in memory, and what one would see on it."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """What is written to a terminal of the width that COLUMNS says."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        """The lines that are seen in the end."""
        lines, column = [[]], 0
        for character in self.getvalue():
            if character == "\r":
                column = 0
            elif character == "\n":
                lines, column = [*lines, []], 0
            else:
                line = lines[-1]
                line += " " * (column + 1 - len(line))
                line[column] = character
                column += 1
        return ["".join(line).rstrip() for line in lines]
