"""How large a package's parts are, for the table of `docs/compare.md`.

python -m benchmarks.size src/sigdeg
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main", "measure"]

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def measure(folder: Path) -> dict[str, tuple[int, ...]]:
    """Sizes of a package in lines, and of parameter lists, `self` not counted."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    lines = [len(text.splitlines()) for text in texts]
    parameters = [count(node.args) for node in nodes if isinstance(node, FUNCTIONS)]
    return {
        "files, lines": (len(lines), sum(lines)),
        "median file, largest file": (int(statistics.median(lines)), max(lines)),
        "longest function, class": (max(long(nodes, FUNCTIONS)), max(long(nodes, ast.ClassDef))),
        "most parameters, functions with more than 7": (
            max(parameters),
            sum(n > 7 for n in parameters),
        ),
    }


def long(nodes: list[ast.AST], kind: type) -> Iterator[int]:
    """Lines of each node of a kind."""
    return (node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, kind))


def count(arguments: ast.arguments) -> int:
    """Named parameters of a function."""
    own = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in own)


def main() -> None:
    """Print the sizes of a folder."""
    for name, sizes in measure(Path(sys.argv[1])).items():
        print(f"{name}: {' / '.join(f'{size:,}' for size in sizes)}")


if __name__ == "__main__":
    main()
