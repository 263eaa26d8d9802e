"""Imports run one way, and what is pure stays pure."""

import ast
from collections.abc import Iterator
from pathlib import Path

import aiozc
from tests.kit.content import case

PACKAGE = Path(aiozc.__file__).parent

# A room, and the rooms beneath it that it may import.
ROOMS: dict[str, set[str]] = {
    "_capabilities": set(),
    "_errors": set(),
    "_version": set(),
    "_kernel": {"_capabilities", "_errors"},
    "_transfers": {"_errors"},
    "_runtime": {"_errors", "_kernel"},
    "_resources": {"_errors", "_kernel", "_transfers", "_runtime"},
    "_engines": {"_errors", "_kernel", "_transfers", "_runtime", "_resources"},
    "_drivers": {"_errors", "_kernel", "_transfers", "_runtime", "_resources", "_engines"},
    "_api": {"_errors", "_kernel", "_transfers", "_runtime", "_resources", "_engines", "_drivers"},
    "_install": {"_errors", "_runtime", "_resources", "_engines", "_drivers", "_api"},
    "streams": {"_errors", "_runtime", "_resources", "_engines", "_api"},
    "lowlevel": {"_errors", "_runtime", "_resources", "_engines", "_api", "_install"},
    "integrations": {
        *("_errors", "_runtime", "_resources", "_engines", "_drivers", "_api"),
        *aiozc.__all__,
    },
    "_elsewhere": {"_capabilities"},
    "__init__": {
        *("_capabilities", "_errors", "_version", "_kernel", "_runtime", "_resources", "_engines"),
        *("_api", "_install", "_elsewhere", "lowlevel", "streams"),
    },
    "__main__": set(aiozc.__all__),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(module: Path) -> Iterator[str]:
    """Yield the dotted names of everything that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_module_imports_its_own_room_and_those_beneath_it() -> None:
    for module in MODULES:
        with case(module=module):
            room = room_of(module)
            for name in imported(module):
                top, _, rest = name.partition(".")
                if top == "aiozc":
                    assert rest.split(".")[0] in ROOMS[room] | {room}, f"{room} imports {name}"


def test_ctypes_has_one_home_and_transfers_do_nothing_themselves() -> None:
    for module in MODULES:
        with case(module=module):
            room = room_of(module)
            tops = {name.split(".")[0] for name in imported(module)}
            assert "ctypes" not in tops or room == "_kernel"
            if room in {"_transfers", "_kernel"}:
                assert "asyncio" not in tops
            if room == "_transfers":
                assert not tops & {"os", "socket", "select", "fcntl"}


def test_which_loop_runs_is_asked_by_the_runtime_alone() -> None:
    """Installing looks at what it is given: that is another question."""
    for module in MODULES:
        if room_of(module) not in {"_runtime", "_install"}:
            with case(module=module):
                asked = [
                    ast.unparse(node.args[1])
                    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
                    if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
                ]
                assert not any("AbstractEventLoop" in kinds for kinds in asked)


def test_the_top_module_only_lists() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    kinds = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
    [choice] = [node for node in tree.body if not isinstance(node, kinds)]
    assert isinstance(choice, ast.If)
    assert ast.unparse(choice.test) == "TYPE_CHECKING or sys.platform == 'linux'"
    assert set(aiozc.__all__) <= set(vars(aiozc))


def test_both_choices_of_the_top_module_list_the_same() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [choice] = [node for node in tree.body if isinstance(node, ast.If)]
    on_linux, elsewhere = (
        {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        for nodes in (choice.body, choice.orelse)
    )
    assert on_linux == elsewhere
    assert {type(node) for node in choice.body + choice.orelse} == {ast.ImportFrom}
