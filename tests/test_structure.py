"""How large files, functions and signatures of the package may be; and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Mapping

import pytest

from .test_import_arrows import FILES, imported, module_name

LINES_OF_A_FILE, LINES_OF_A_FUNCTION, ARGUMENTS = 300, 80, 12


def too_large(source: str, name: str) -> list[str]:
    """What in `source` is beyond the limits; `self` is an argument, decorators and docstrings are lines."""
    found = []
    if (lines := len(source.splitlines())) > LINES_OF_A_FILE:
        found.append(f"{name} has {lines} lines, {LINES_OF_A_FILE} at most")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if (lines := node.end_lineno - first + 1) > LINES_OF_A_FUNCTION:
                found.append(f"{name}: {node.name} has {lines} lines, {LINES_OF_A_FUNCTION} at most")
            given = node.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
            if count > ARGUMENTS:
                found.append(f"{name}: {node.name} has {count} arguments, {ARGUMENTS} at most")
    return found


def dependencies(sources: Mapping[str, str], *, packages: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Which of the modules each one imports, at its top or in a function.

    Args:
        sources: by full name of the module.
        packages: the modules that are an `__init__.py`.
    """
    edges = {}
    for name, source in sources.items():
        found = set()
        for target in imported(source, name, is_package=name in packages):
            # What is imported from a module, such as a function, has the module's name in front.
            owner = target if target in sources else target.rpartition(".")[0]
            found |= {owner} & set(sources)
        edges[name] = sorted(found)
    return edges


def circle(edges: Mapping[str, list[str]]) -> list[str]:
    """A path along the edges that ends where it begins; empty if there is none."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in edges[name]:
            if found := search(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := search(name, []))), [])


def test_files_functions_and_signatures_can_be_read_in_one_sitting() -> None:
    found = [line for path in FILES for line in too_large(path.read_text(encoding="utf-8"), module_name(path))]
    assert not found, "\n".join(found)


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}
    edges = dependencies(sources, packages=frozenset(module_name(path) for path in FILES if path.stem == "__init__"))
    assert sum(map(len, edges.values())) > len(FILES)
    assert not (found := circle(edges)), " -> ".join(found)


def function(*, lines: int = 2, arguments: str = "", indent: str = "", start: str = "def") -> str:
    body = [f"{indent}    pass"] * (lines - 1)
    return "\n".join([f"{indent}{start} f({arguments}):", *body])


TWELVE = ", ".join(f"a{number}" for number in range(12))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pass\n" * 301, "m has 301 lines"),
        (function(lines=81), "m: f has 81 lines"),
        (function(lines=81, start="async def"), "m: f has 81 lines"),
        ("@cached(\n    1\n)\n" + function(lines=78), "m: f has 81 lines"),
        ("class A:\n" + function(lines=81, indent="    "), "m: f has 81 lines"),
        ("def g():\n" + function(lines=2, arguments=TWELVE + ", a12, *rest", indent="    "), "m: f has 13 arguments"),
        ("class A:\n" + function(arguments=f"self, {TWELVE}", indent="    "), "m: f has 13 arguments"),
        (function(arguments=f"self, /, {TWELVE}"), "m: f has 13 arguments"),
        (function(arguments=f"self, *, {TWELVE}"), "m: f has 13 arguments"),
        (function(arguments=f"{TWELVE}, *, a12, **options"), "m: f has 13 arguments"),
    ],
)
def test_what_is_too_large_is_found(source: str, message: str) -> None:
    assert [line.startswith(message) for line in too_large(source, "m")] == [True]


@pytest.mark.parametrize("source", ["pass\n" * 300, function(lines=80), function(arguments=TWELVE)])
def test_what_is_just_small_enough_is_let_pass(source: str) -> None:
    assert too_large(source, "m") == []


@pytest.mark.parametrize(
    ("second", "third", "path"),
    [
        ("from p import a", "", ["p.a", "p.b", "p.a"]),
        ("def f():\n    from .a import name", "", ["p.a", "p.b", "p.a"]),
        ("import p.c", "from p.a import name", ["p.a", "p.b", "p.c", "p.a"]),
        ("import p.c", "from . import b", ["p.b", "p.c", "p.b"]),
        ("import p.c, math\nfrom p import name", "from p import other", []),
        ("import p.c", "from q.a import name", []),
    ],
)
def test_circles_are_found_wherever_the_import_stands(second: str, third: str, path: list[str]) -> None:
    sources = {"p": "name = other = 1", "p.a": "from p.b import name", "p.b": second, "p.c": third}
    assert circle(dependencies(sources, packages=frozenset({"p"}))) == path
