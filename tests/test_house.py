"""Holds the floors up: what may import what, what every module must have, and what must not appear at all."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FLOORS = ("profiles", "offload", "runtime", "tui")
MAX_LINES = 600
TORCH_FREE = ("profiles", "runtime.speculation")
SEEN_BY_THE_TERMINAL = ("offload.errors.", "offload.units.")
HEAVY = {"torch", "transformers", "accelerate", "bitsandbytes"}


def modules() -> list[str]:
    paths = (path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def source_of(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every imported name with its dots, imports inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def floor_violations(module: str, source: str) -> list[str]:
    floor = module.split(".")[0]
    found = []
    for imported in imports_of(ast.parse(source)):
        top = imported.split(".")[0]
        if top == "":
            found.append(f"{module} imports {imported}: name the package")
        elif top in FLOORS and FLOORS.index(top) > FLOORS.index(floor):
            found.append(f"{module} imports {imported}: that is a floor above")
        elif floor == "tui" and top == "offload" and not f"{imported}.".startswith(SEEN_BY_THE_TERMINAL):
            found.append(f"{module} imports {imported}: the terminal sees only offload.errors and offload.units")
        elif top in HEAVY and f"{module}.".startswith(tuple(f"{package}." for package in TORCH_FREE)):
            found.append(f"{module} imports {imported}: this package knows no torch")
        elif top == "tests":
            found.append(f"{module} imports {imported}: the product does not import its tests")
    return found


Method = ast.FunctionDef | ast.AsyncFunctionDef
# And `do_` + a name of the commands' registry, which says what that command does.
TEXTUAL_HANDLERS = re.compile("compose|(on|watch|action|key|render|do)(_.*)?")


def methods_of(node: ast.ClassDef) -> list[Method]:
    return [child for child in node.body if isinstance(child, Method)]


def bases_of(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}


def documented_methods(sources: Iterable[str]) -> dict[str, set[str]]:
    """The names of each class's documented methods; those of protocols and abstract classes stand under "" too."""
    found: dict[str, set[str]] = {"": set()}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                names = {method.name for method in methods_of(node) if ast.get_docstring(method)}
                found.setdefault(node.name, set()).update(names)
                if bases_of(node) & {"Protocol", "ABC"}:
                    found[""] |= names
    return found


def explains_itself(method: Method, owner: ast.ClassDef, module: str, documented: Mapping[str, set[str]]) -> bool:
    """A property is a field; a method that takes nothing may say all by its name; a seam documents what fills it."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in method.decorator_list}
    if decorators & {"property", "cached_property", "setter"}:
        return True
    if len(method.args.args) + len(method.args.kwonlyargs) == 1:
        return True
    if module.startswith("tui.chat") and TEXTUAL_HANDLERS.fullmatch(method.name):
        return True
    return any(method.name in documented.get(base, ()) for base in {"", *bases_of(owner)})


def undocumented(module: str, source: str, documented: Mapping[str, set[str]] | None = None) -> list[str]:
    documented = documented_methods([source]) if documented is None else documented

    def missing(node: ast.AST, name: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{name} has no docstring"
        if isinstance(node, Method):
            return
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | Method) or child.name.startswith("_"):
                continue
            is_method = isinstance(child, Method) and isinstance(node, ast.ClassDef)
            if is_method and not ast.get_docstring(child) and explains_itself(child, node, module, documented):
                continue
            yield from missing(child, f"{name}.{child.name}")

    return list(missing(ast.parse(source), module))


def forbidden(module: str, source: str) -> list[str]:
    found = [f"{module} imports pickle" for name in imports_of(ast.parse(source)) if name.split(".")[0] == "pickle"]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print" and not module.startswith("tui"):
            found.append(f"{module}:{node.lineno} prints below the terminal")
        if called == "torch.load":
            found.append(f"{module}:{node.lineno} calls torch.load, which reads pickle")
        found += [
            f"{module}:{node.lineno} sets trust_remote_code"
            for keyword in node.keywords
            if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
        ]
    return found


def test_imports_go_down_only():
    assert [found for module in modules() for found in floor_violations(module, source_of(module))] == []


def imports_between(names: set[str]) -> dict[str, set[str]]:
    """What each module imports of the others, wherever in it the import stands."""
    found: dict[str, set[str]] = {}
    for module in names:
        imported = set(imports_of(ast.parse(source_of(module))))
        parents = {name.rpartition(".")[0] for name in imported}
        found[module] = ((imported | parents) & names) - {module}
    return found


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_imports_go_round_in_a_circle():
    assert circle(imports_between(set(modules()))) == []


def test_a_circle_is_found():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b"}, "b": {"c"}}) == []


def renamed_to_itself(tree: ast.AST) -> list[str]:
    names = (alias for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names)
    return [alias.name for alias in names if alias.asname == alias.name]


def test_nothing_is_imported_to_be_handed_on():
    """`x as x` lets a module be imported from where it does not stand."""
    assert {module: names for module in modules() if (names := renamed_to_itself(ast.parse(source_of(module))))} == {}
    assert renamed_to_itself(ast.parse("from a import b as b, c, d as e")) == ["b"]


def test_everything_public_has_a_docstring():
    documented = documented_methods(map(source_of, modules()))
    assert [found for module in modules() for found in undocumented(module, source_of(module), documented)] == []


def test_nothing_forbidden_appears():
    assert [found for module in modules() for found in forbidden(module, source_of(module))] == []


def test_no_file_is_too_long_to_read():
    lengths = {module: len(source_of(module).splitlines()) for module in modules()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_of_tests_is_too_long_to_read():
    paths = sorted((ROOT / "tests").rglob("*.py"))
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    too_long = [f"{name} has {length} lines" for name, length in lengths.items() if length > MAX_LINES]
    assert too_long == [], f"at most {MAX_LINES}: split it by idea, with what the parts share in a module of its own"
    assert "tests/test_house.py" in lengths


def folder_tests(module: str) -> Iterator[Path]:
    """The test files that mirror the module's folder."""
    return (ROOT / "tests").joinpath(*module.split(".")[:-1]).rglob("test_*.py")


def imports_module(path: Path, module: str) -> bool:
    names = imports_of(parsed(path))
    return any(f"{name}.".startswith(f"{module}.") for name in names)


def test_every_module_has_tests_in_its_folder():
    """A test there imports it, or bears its name."""
    untested = []
    for module in modules():
        if ROOT.joinpath(*module.split(".")).is_dir() or module.endswith("errors"):
            continue
        named = f"test_{module.rsplit('.', 1)[1]}.py"
        found = (path.name == named or imports_module(path, module) for path in folder_tests(module))
        if not any(found):
            untested.append(module)
    assert not untested, untested


def test_the_house_is_not_empty():
    """A wrong path would let every test above pass."""
    assert {module.split(".")[0] for module in modules()} == set(FLOORS)
    assert len(modules()) > 30


def test_the_command_line_and_the_light_packages_import_no_torch():
    """Importing torch takes seconds, and --help must not."""
    light = [module for module in modules() if module.startswith((*TORCH_FREE, "tui.chat"))]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    command = [sys.executable, "-c", program, "tui.cli", *light]
    loaded = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert "tui.cli" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("profiles.x", "import offload.units"),
        ("offload.x", "from runtime import events"),
        ("runtime.x", "def f():\n    from tui.cli import main"),
        ("runtime.model.x", "import tui"),
        ("tui.x", "from offload.unit import parse_bytes"),
        ("tui.x", "from offload import errors_of_others"),
        ("tui.x", "import offload"),
        ("runtime.x", "from . import events"),
        ("runtime.speculation.x", "import torch"),
        ("profiles", "from torch import Tensor"),
        ("profiles.x", "if TYPE_CHECKING:\n    import transformers.models"),
    ],
)
def test_an_import_that_goes_up_is_caught(module, source):
    assert len(floor_violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.x", "from offload.units import parse_bytes\nfrom profiles import y\nimport torch"),
        ("tui.x", "from offload.units import parse_bytes"),
        ("tui.x", "from offload.errors import OverstoryError\nfrom offload import errors\nimport runtime.events"),
        ("offload.x", "import torch, numpy\nfrom offload.errors import LinkError"),
        ("runtime.speculations", "import torch"),
    ],
)
def test_an_import_that_goes_down_is_fine(module, source):
    assert floor_violations(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        '"""Doc."""\ndef f(): pass',
        '"""Doc."""\nclass C:\n    """Doc."""\n    def f(self, x): pass',
        '"""Doc."""\nclass C:\n    """Doc."""\n    class D:\n        x = 1',
    ],
)
def test_a_missing_docstring_is_caught(source):
    assert undocumented("x", source)


def test_private_and_inner_names_need_no_docstring():
    source = (
        '"""D."""\ndef _f(): pass\nasync def g():\n    """D."""\n    def h(): pass\nclass _C:\n    def f(self): pass\n'
    )
    assert undocumented("x", source) == []


def test_what_is_documented_at_its_seam_needs_no_docstring_again():
    seam = '"""D."""\nclass S(Protocol):\n    """D."""\n    def f(self, x):\n        """D."""\n'
    mine = 'class C:\n    """D."""\n    def f(self, x): pass\n    @property\n    def p(self): pass\n'
    mine += "    def close(self): pass\n"
    heir = 'class E(D):\n    """D."""\n    def h(self, x): pass\n'
    parent = 'class D:\n    """D."""\n    def h(self, x):\n        """D."""\n'
    assert undocumented("x", seam + mine + parent + heir) == []
    assert undocumented("x", '"""D."""\n' + mine) == ["x.C.f has no docstring"]
    assert undocumented("x", '"""D."""\n' + parent + heir.replace("(D)", "")) == ["x.E.h has no docstring"]


def test_textual_calls_its_handlers_and_says_what_they_are():
    source = '"""D."""\nclass C:\n    """D."""\n    def on_key(self, event): pass\n    def action_step(self, n): pass\n'
    assert undocumented("tui.chat.x", source) == []
    assert len(undocumented("runtime.x", source)) == 2


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "print(1)",
        "torch.load(path)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
    ],
)
def test_a_forbidden_call_is_caught(source):
    assert len(forbidden("runtime.x", source)) == 1


def test_trust_may_be_refused_and_the_terminal_may_print():
    assert forbidden("tui.x", "print(1)\nf(trust_remote_code=False)") == []
