"""The blocks of code in README and docs: what they say, what they print, and which are not run."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\s*$")
_SKIP = re.compile(r"^<!-- not run: (\S.*) -->$")


@dataclass(slots=True)
class Block:
    """A block of code.

    Args:
        language: As its fence says.
        code: Its lines.
        line: Where it starts in the page, from 1.
        reason: Why it is not run; empty if it is.
        output: What the page shows that it prints, line by line.
    """

    language: str
    code: str
    line: int
    reason: str = ""
    output: list[str] = field(default_factory=list)


def blocks_of(markdown: str) -> list[Block]:
    """Return a page's bash and python blocks; a text block after a bash block is its output."""
    blocks: list[Block] = []
    lines = markdown.splitlines()
    after_bash = False
    index = 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        if not fence:
            after_bash &= not lines[index].strip()
            index += 1
            continue
        end = lines.index("```", index + 1)
        inner = lines[index + 1 : end]
        if fence[1] in ("bash", "python"):
            skipped = _SKIP.match(lines[index - 1])
            reason = skipped[1] if skipped else ""
            blocks.append(Block(fence[1], "\n".join(inner), index + 1, reason))
        elif fence[1] == "text" and after_bash:
            blocks[-1].output += inner
        after_bash = fence[1] == "bash"
        index = end + 1
    return blocks
