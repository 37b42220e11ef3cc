"""Print the graph of the library's rooms, drawn from their imports, for docs/dev/architecture.md.

`python docs/dev/architecture.py`; with `--write` it is put into the page.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
LIBRARY = PAGE.parents[2] / "workflow" / "scripts" / "elkflow"
BLOCK = re.compile(
    r"(?<=<!-- rooms: begin \(python docs/dev/architecture\.py\) -->\n).*?(?=<!-- rooms: end -->)", re.DOTALL
)

Graph = dict[str, set[str]]


def rooms() -> list[str]:
    """Names of the library's sub-packages."""
    return sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere but for type checkers."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def room_graph() -> Graph:
    """Which rooms each room imports from."""
    names = rooms()
    graph: Graph = {}
    for room in names:
        found = {
            name.split(".")[1]
            for path in (LIBRARY / room).glob("*.py")
            for name in imported(path)
            if name.startswith("elkflow.")
        }
        graph[room] = (found & set(names)) - {room}
    return graph


def below(graph: Graph, room: str) -> set[str]:
    """Every room that `room` imports from, directly or through others.

    Raises:
        SystemExit: a room imports itself through others.
    """
    found: set[str] = set()
    todo = [room]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    if room in found:
        sys.exit(f"error: {room} imports itself through {', '.join(sorted(found - {room}))}")
    return found


def mermaid(graph: Graph) -> str:
    """The graph as a fenced mermaid block, without the arrows that follow from others and those to `common`."""
    lines = []
    for room, others in sorted(graph.items()):
        shown = others - {other for via in others for other in below(graph, via)} - {"common"}
        lines += [f"  {room} --> {other}" for other in sorted(shown)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def main(arguments: list[str]) -> None:
    drawn = mermaid(room_graph())
    if "--write" in arguments:
        PAGE.write_text(BLOCK.sub(lambda _: drawn, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(drawn, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
