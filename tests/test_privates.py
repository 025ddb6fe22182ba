"""No code reaches into the privates of another package: a name that begins with one underscore is its owner's.

A private name is used in the class that defines it and in classes of the same package that inherit it; in the packages
themselves also elsewhere in that module, since a module is one concept. A test that cannot see something from outside
asks for what its users would want to see, too: a property, a metric, a log line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

DOCUMENTED = {"_asdict", "_fields", "_make", "_replace"} | {"_current_frames", "_exit", "_getframe"}
"""Public by their documentation: those of named tuples, `sys._current_frames`, `sys._getframe`, `os._exit`."""

FOREIGN = {
    "shared/tipoff_shared/nats/client.py": (
        "nats-py",  # it has no public name for any of these, and each mends a fault of its client
        """_error_cb _id _init_request_sub _io_writer _over_ssl _pongs _reconnection_task _remove_sub _resp_map
        _resp_sub_prefix _server_info _stop_processing _subs""",
    ),
    "shared/tipoff_shared/nats/wire.py": ("nats-py", "_get_metadata_fields"),  # its reader of reply subjects
    "matchmaker_httpd/tipoff_matchmaker_httpd/server/http.py": (
        "uvicorn",  # ends its own time limit of idle connections, which ours replaces
        "_unset_keepalive_if_required",
    ),
    "tests/shared/test_nats_connection.py": (
        "nats-py",  # a state of its client, between two of its lines, that no socket can bring about at will
        "_flusher_task _transport",
    ),
}
"""File -> a library without a public way, and its private names that are used. The file says for which version."""

_BY_NAME = {"getattr", "setattr", "delattr", "hasattr", "attrgetter", "methodcaller", "patch"}
"""Functions that take the name of an attribute, or a dotted path to one."""
_PATH = re.compile(r"\w+(\.\w+)*")


class Reach(NamedTuple):
    """A use of somebody else's private name."""

    line: int
    name: str
    text: str


def is_private(name: str) -> bool:
    """Whether it is its owner's: `_x` and `__x`, not `__x__` and not an enum's `_x_`."""
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED


class Module:
    """One file: its syntax tree, its classes, and the module of each name that it imports."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.classes: dict[str, ast.ClassDef] = {}
        self.imported: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                self.imported |= {alias.asname or alias.name: node.module for alias in node.names}


class Sources:
    """The Python files of a tree. No syntax tree is kept: the garbage collector would look through them all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted(
            path
            for path in root.rglob("*.py")
            if not any(part[0] == "." or part == "node_modules" for part in path.relative_to(root).parts)
        )

    def package(self, path: Path) -> str:
        """The package of a module: `tests`, `bench`, or the folder `tipoff...` that holds it."""
        parts = path.relative_to(self.root).parts
        return next((part for part in parts if part.startswith("tipoff")), parts[0])

    def reaches(self, path: Path) -> Iterator[Reach]:
        """Uses of privates that are neither the class's nor, in a package, the module's own."""
        module = Module(path)
        own = set[str]()
        if self.package(path) not in ("tests", "bench"):
            own = own.union(*map(defined, module.classes.values()))
        return self._reaches(module.tree, None, path, module, own)

    def _reaches(
        self, node: ast.AST, cls: ast.ClassDef | None, path: Path, module: Module, own: set[str]
    ) -> Iterator[Reach]:
        if isinstance(node, ast.ClassDef):
            cls, own = node, own | defined(node)
        for name, of_self in used(node):
            if not is_private(name) or name in own:
                continue
            if not (of_self and cls is not None and name in self._inherited(cls, path, module)):
                yield Reach(getattr(node, "lineno", 0), name, ast.unparse(node)[:100])
        for child in ast.iter_child_nodes(node):
            yield from self._reaches(child, cls, path, module, own)

    def _inherited(self, cls: ast.ClassDef, path: Path, module: Module) -> set[str]:
        """What a class and its bases in the same package define."""
        names = defined(cls)
        for base in cls.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if not isinstance(base, ast.Name) or base.id == cls.name:
                continue
            if base.id in module.classes:
                names |= self._inherited(module.classes[base.id], path, module)
            elif (where := self._find(module.imported.get(base.id, ""))) is not None:
                found = Module(where)
                if self.package(where) == self.package(path) and base.id in found.classes:
                    names |= self._inherited(found.classes[base.id], where, found)
        return names

    def _find(self, dotted: str) -> Path | None:
        """The file of a module."""
        end = "/" + dotted.replace(".", "/") + ".py"
        return next((path for path in self.files if path.as_posix().endswith(end)), None)


def defined(cls: ast.ClassDef) -> set[str]:
    """Methods, fields and attributes of `self` that a class defines itself."""
    names = set[str]()
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    for statement in cls.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return names


def is_self(node: ast.expr) -> bool:
    """Whether it is `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def used(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """The names that a node takes from elsewhere, and whether from `self`."""
    match node:
        case ast.Attribute(value=value, attr=name):
            yield name, is_self(value)
        case ast.ImportFrom(module=module, names=aliases) if module != "__future__":
            for name in (*(module or "").split("."), *(alias.name for alias in aliases)):
                yield name, False
        case ast.Import(names=aliases):
            for alias in aliases:
                yield from ((name, False) for name in alias.name.split("."))
        case ast.MatchClass(kwd_attrs=names):
            yield from ((name, False) for name in names)
        case ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
            if re.search(r"\b__dict__$|^vars\(", ast.unparse(value)):
                yield name, False
        case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called), args=arguments) if (
            called in _BY_NAME or (called == "object" and ast.unparse(node.func).endswith("patch.object"))
        ):
            of_self = bool(arguments) and is_self(arguments[0])
            paths = [each.value for each in arguments if isinstance(each, ast.Constant)]
            for path in paths:
                if isinstance(path, str) and _PATH.fullmatch(path):
                    yield from ((name, of_self) for name in path.split("."))


@pytest.fixture(scope="module")
def sources(source_tree: Path) -> Sources:
    return Sources(source_tree)


@pytest.mark.slow  # it reads every file
def test_nobody_reaches_into_the_privates_of_another_package(sources: Sources) -> None:
    """Tests, benchmarks and examples as little as the packages."""
    found = []
    for path in sources.files:
        file = path.relative_to(sources.root).as_posix()
        allowed = FOREIGN.get(file, ("", ""))[1].split()
        found += [
            f"{file}:{reach.line}: {reach.text}"
            for reach in sources.reaches(path)
            if reach.name not in allowed
        ]
    assert found == []


@pytest.mark.parametrize("file", FOREIGN)
@pytest.mark.slow  # it reads every file
def test_each_private_of_a_library_is_used_and_its_file_says_for_which_version(
    sources: Sources, file: str
) -> None:
    """An exception that nobody needs any more is removed."""
    library, names = FOREIGN[file]
    path = sources.root / file
    assert {reach.name for reach in sources.reaches(path)} == set(names.split())
    assert re.search(rf"{library}\W{{1,3}}\d+\.\d+", path.read_text())


@pytest.mark.parametrize(
    "code",
    [
        "server._started",
        "server.parts._listeners.close()",
        "server._port = 1",
        "del server._port",
        "super_._x",
        "running()._x",
        "Server._decide(1)",
        "from tipoff_shared.nats.client import _is_readable",
        "import tipoff_shared._hidden",
        "from tipoff_shared._hidden import shown",
        "getattr(server, '_port')",
        "hasattr(server, '_port')",
        "setattr(server, '_port', 1)",
        "operator.attrgetter('state._port')",
        "monkeypatch.setattr(server, '_port', 1)",
        "monkeypatch.setattr('tipoff_matchmaker.requests.placement._TRIES', 1)",
        "monkeypatch.delattr(server, '_port')",
        "mock.patch('tipoff_shared.kv._x')",
        "mock.patch.object(server, '_port')",
        "vars(server)['_port']",
        "server.__dict__['_port']",
        "match server:\n    case Server(_port=1): pass",
        "class A:\n    def f(self, other):\n        return other._x",
        "class A:\n    _x = 1\nA()._x",
        "class A(Server):\n    def f(self):\n        return self._port",
        "class A(Server):\n    def f(self):\n        return getattr(self, '_port')",
        "class A(Server):\n    def f(self):\n        return super()._port()",
    ],
)
def test_a_reach_is_found(tmp_path: Path, code: str) -> None:
    """Whatever its form."""
    assert list(_reaches(tmp_path, "tests/test_it.py", code)) != []


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x",
        "class A:\n    _x: int\nclass B(A):\n    def f(self):\n        return self._x",
        "class A:\n    def _f(self): ...\nclass B(A):\n    def _f(self):\n        return super()._f()",
        "from tests.a_base import Base\nclass B(Base[int]):\n    def f(self):\n        return self._in_base",
        "class A:\n    def f(self):\n        self._x = 1\n        return getattr(self, '_x')",
        "point._replace(x=1)._asdict()",
        "os._exit(1)",
        "value.__class__.__name__",
        "Colour.RED._value_",
        "from __future__ import annotations",
        "environ.get('_PRIVATE')",
        "getattr(message, 'a text about _x')",
        "def _helper(): ...\n_helper()",
    ],
)
def test_what_is_one_s_own_or_public_is_no_reach(tmp_path: Path, code: str) -> None:
    """In tests, too."""
    assert list(_reaches(tmp_path, "tests/test_it.py", code)) == []


def test_a_module_of_a_package_may_use_its_own_classes(tmp_path: Path) -> None:
    """A function beside a class is part of the same concept."""
    code = "class A:\n    _x = 1\ndef of(a: A):\n    return a._x\n"
    assert list(_reaches(tmp_path, "shared/tipoff_shared/a.py", code)) == []
    other = "from tipoff_shared.a import A\ndef of(a: A):\n    return a._x\n"
    assert [reach.name for reach in _reaches(tmp_path, "shared/tipoff_shared/b.py", other)] == ["_x"]


def _reaches(root: Path, file: str, code: str) -> Iterator[Reach]:
    """What is found in a file with this code, beside a module with a base class."""
    for name, text in ((file, code), ("tests/a_base.py", "class Base:\n    _in_base = 1\n")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Sources(root).reaches(root / file)
