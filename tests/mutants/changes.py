"""The changes that can be made to a module, one at a time: mutmut's operators, and those that drivers need besides.

    source -> changes_of() -> [Change(function, kind, lines, start, end, text)] -> Change.applied_to(source)

mutmut changes operators, values, arguments. What breaks an event path is coarser: a call that is left out, a guard that
is ignored, a failure that is not handled. Changes that do not alter behaviour are not made: log texts, prose,
docstrings, annotations, `__slots__`, type-only code, names of tasks, assertions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

LOGS = {"log", "_log", "logger", "logging", "warnings"}
TYPE_ONLY_CALLS = {"TypeVar", "ParamSpec", "NewType", "cast", "assert_never", "getLogger"}
TUNING = re.compile("pause|delay|jitter")
TYPE_ONLY_NAMES = {"__slots__", "__all__", "__match_args__"}


@dataclass(frozen=True)
class Change:
    """One change to one module. `start` and `end` are offsets in the encoded source, `lines` what a test must run to
    notice it."""

    function: str
    kind: str
    lines: frozenset[int]
    start: int
    end: int
    text: str
    imported: bool = False
    """Whether the lines run when the module is imported, whichever test is the first to do that."""

    def applied_to(self, source: str) -> str:
        """The source of the module with this change."""
        encoded = source.encode()
        return (encoded[: self.start] + self.text.encode() + encoded[self.end :]).decode()

    def diff(self, source: str) -> str:
        """The changed lines, `- ` before and `+ ` after, without their indentation: stable while the file moves."""
        before, after = (
            [line.strip() for line in text.splitlines()] for text in (source, self.applied_to(source))
        )
        lines: list[str] = []
        for _, a, b, c, d in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
            if before[a:b] != after[c:d]:
                lines += [f"- {line}" for line in before[a:b]] + [f"+ {line}" for line in after[c:d]]
        return "\n".join(lines)


def changes_of(source: str) -> list[Change]:
    """All changes to a module that compile and alter it, by position; each text once for each place."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Visitor(wrapper.module)
    wrapper.visit(visitor)
    found: dict[tuple[int, int, str], Change] = {}
    for change in sorted(visitor.changes, key=lambda change: (change.start, change.end, change.text)):
        if source.encode()[change.start : change.end].decode() != change.text:
            found.setdefault((change.start, change.end, change.text), change)
    return [change for change in found.values() if _compiles(change.applied_to(source))]


def _compiles(source: str) -> bool:
    try:
        compile(source, "<changed>", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (ByteSpanPositionProvider, PositionProvider)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self.changes: list[Change] = []
        self._module = module
        self._encoded = module.bytes
        self._names: list[str] = []
        self._functions: list[cst.FunctionDef] = []
        self._lines: list[frozenset[int]] = [frozenset()]

    # Where we are.

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._names.append(node.name.value)
        if isinstance(node, cst.FunctionDef):
            self._functions.append(node)
        if _has_lines(node):
            self._lines.append(self._lines_of(node))
        if _is_inert(node):
            return False
        for kind, replaced, text in self._texts(node):
            span = self.get_metadata(ByteSpanPositionProvider, replaced)
            lines = self._handler_lines(node) if kind == "failure not handled" else self._lines[-1]
            function = ".".join(self._names) or "(module)"
            end = span.start + span.length
            self.changes.append(
                Change(function, kind, lines, span.start, end, text, imported=not self._functions)
            )
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._names.pop()
        if isinstance(original_node, cst.FunctionDef):
            self._functions.pop()
        if _has_lines(original_node):
            self._lines.pop()

    def _lines_of(self, node: cst.CSTNode) -> frozenset[int]:
        """The lines of a statement; of a compound one, those of its head. For a function's head, its body's: defaults
        are evaluated at import."""
        at = self.get_metadata(PositionProvider, node)
        body = getattr(node, "body", None)
        if isinstance(node, cst.FunctionDef):
            inner = self.get_metadata(PositionProvider, node.body)
            return frozenset(range(inner.start.line, inner.end.line + 1))
        if isinstance(node, cst.ClassDef | cst.Module):
            return frozenset()
        if isinstance(node, cst.Match):
            return frozenset(
                range(at.start.line, self.get_metadata(PositionProvider, node.subject).end.line + 1)
            )
        if isinstance(body, cst.BaseSuite):
            first = self.get_metadata(PositionProvider, body).start.line
            return frozenset(range(at.start.line, max(at.start.line, first - 1) + 1))
        return frozenset(range(at.start.line, at.end.line + 1))

    def _handler_lines(self, node: cst.CSTNode) -> frozenset[int]:
        assert isinstance(node, cst.ExceptHandler)
        body = self.get_metadata(PositionProvider, node.body)
        return frozenset(range(body.start.line, body.end.line + 1))

    # What can be changed.

    def _texts(self, node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode, str]]:
        """Kind, the node that is replaced, and the text in its place."""
        yield from self._left_out(node)
        yield from self._conditions(node)
        for kind, new in self._by_mutmut(node):
            yield self._smallest(kind, node, new)

    def _left_out(self, node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode, str]]:
        if isinstance(node, cst.Expr):
            value = node.value.expression if isinstance(node.value, cst.Await) else node.value
            if isinstance(value, cst.Call):
                yield "call left out", node, "pass"
        elif isinstance(node, cst.Raise) and node.exc is not None:
            yield "error left out", node, "pass"
        elif isinstance(node, cst.Del):
            yield "deletion left out", node, "pass"
        elif isinstance(node, cst.Assign) and not self._in_init():
            if _sets_a_part(node):
                yield "assignment left out", node, "pass"
        elif isinstance(node, cst.ExceptHandler) and not _ends_with_raise(node.body):
            body = node.body.body if isinstance(node.body, cst.IndentedBlock) else []
            if body:
                first = body[0].body[0] if isinstance(body[0], cst.SimpleStatementLine) else body[0]
                code = self._module.code_for_node(first).strip()
                # What follows is not reached any more.
                yield (
                    "failure not handled",
                    first,
                    "raise" if "\n" not in code else f"raise\n{self._indent(first)}{code}",
                )

    def _source(self, node: cst.CSTNode) -> str:
        span = self.get_metadata(ByteSpanPositionProvider, node)
        return self._encoded[span.start : span.start + span.length].decode()

    def _smallest(self, kind: str, node: cst.CSTNode, new: cst.CSTNode) -> tuple[str, cst.CSTNode, str]:
        """The part that differs instead of the whole expression, so that the lines around it stay as they are."""
        if isinstance(node, cst.Call) and isinstance(new, cst.Call) and len(node.args) == len(new.args):
            for arg, other in zip(node.args, new.args, strict=True):
                if arg is not other and arg.keyword is other.keyword:
                    return kind, arg.value, self._module.code_for_node(other.value)
        operator, changed = getattr(node, "operator", None), getattr(new, "operator", None)
        if operator is not None and changed is not None and operator is not changed:
            node, new = operator, changed
        was, text = self._source(node), self._module.code_for_node(new).strip().replace(", )", ")")
        before, after = was[: len(was) - len(was.lstrip())], was[len(was.rstrip()) :]
        return kind, node, before + text + after

    def _indent(self, node: cst.CSTNode) -> str:
        return " " * self.get_metadata(PositionProvider, node).start.column

    def _conditions(self, node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode, str]]:
        if isinstance(node, cst.IfExp) and _is_text(node.body) and _is_text(node.orelse):
            return
        if isinstance(node, cst.If | cst.IfExp):
            yield "condition always true", node.test, "True"
            yield "condition always false", node.test, "False"
        elif isinstance(node, cst.CompIf):
            yield "condition always true", node.test, "True"
        elif isinstance(node, cst.While) and not m.matches(node.test, m.Name("True")):
            yield "condition always false", node.test, "False"
        elif isinstance(node, cst.BooleanOperation):
            yield "half of the condition", node, self._source(node.left)
            yield "half of the condition", node, self._source(node.right)

    def _by_mutmut(self, node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode]]:
        if isinstance(node, cst.Assign | cst.AnnAssign) and (self._in_init() or not self._functions):
            return
        if (
            isinstance(node, cst.BinaryOperation)
            and not self._functions
            and m.matches(node, m.BinaryOperation(operator=m.BitOr()))
        ):
            return  # a type
        for kind, operator in mutators.mutation_operators:
            if isinstance(node, kind):
                name = operator.__name__.removeprefix("operator_").replace("_", " ")
                for new in _worthwhile(node, operator, operator(node)):
                    yield name, new

    def _in_init(self) -> bool:
        return bool(self._functions) and self._functions[-1].name.value in {"__init__", "__post_init__"}


def _worthwhile(node: cst.CSTNode, operator: object, changed: Iterable[cst.CSTNode]) -> Iterator[cst.CSTNode]:
    """Of mutmut's changes, those that are neither equal nor noticed by the first line that runs them."""
    if operator is mutators.operator_if_exp:
        return  # as "condition always ..."
    if operator is mutators.operator_assignment:
        if isinstance(node, cst.Assign) and _sets_a_part(node):
            return  # as "assignment left out"
        if isinstance(node, cst.Assign | cst.AnnAssign) and m.matches(node.value, m.Name("None")):
            return  # None and "" are both false
        if isinstance(node, cst.Assign | cst.AnnAssign) and node.value is not None and _is_text(node.value):
            return
        yield from changed
    elif operator is mutators.operator_string:
        yield from list(changed)[:1]  # upper and lower case do not add to a changed word
    elif operator is mutators.operator_arg_removal:
        assert isinstance(node, cst.Call)
        if m.matches(node.func, m.Name("len") | m.Name("isinstance") | m.Name("super")):
            return
        for new in changed:
            assert isinstance(new, cst.Call)
            if len(new.args) < len(node.args):
                kept = set(map(id, new.args))
                gone = next(arg for arg in node.args if id(arg) not in kept)
                if gone.keyword is not None and not _is_inert(gone):
                    yield new
            else:
                replaced = next(old for old, arg in zip(node.args, new.args, strict=True) if old is not arg)
                if replaced.keyword is None and not _is_text(replaced.value):
                    yield new
    elif operator is mutators.operator_number:
        if isinstance(node, cst.Integer):
            yield from changed  # a float is a tuning figure
    else:
        yield from changed


def _sets_a_part(node: cst.Assign) -> bool:
    """`self.known = one`, `known[key] = one`."""
    return all(m.matches(target.target, m.Attribute() | m.Subscript()) for target in node.targets)


def _ends_with_raise(body: cst.BaseSuite) -> bool:
    last = body.body[-1] if body.body else None
    return isinstance(last, cst.SimpleStatementLine) and isinstance(last.body[-1], cst.Raise)


def _has_lines(node: cst.CSTNode) -> bool:
    return isinstance(
        node, cst.SimpleStatementLine | cst.BaseCompoundStatement | cst.ExceptHandler | cst.MatchCase
    )


def _is_inert(node: cst.CSTNode) -> bool:
    """Whether nothing in here alters behaviour."""
    if isinstance(
        node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Assert | cst.Global
    ):
        return True
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString):
        return True  # a docstring
    if isinstance(node, cst.Expr) and _is_log(node.value):
        return True
    if isinstance(node, cst.Call):
        return _is_log(node) or _called(node) in TYPE_ONLY_CALLS
    if isinstance(node, cst.Arg):
        keyword = "" if node.keyword is None else node.keyword.value
        # The name of a task, a tuning figure, a text.
        return keyword == "name" or (bool(keyword) and (bool(TUNING.search(keyword)) or _is_text(node.value)))
    if isinstance(node, cst.Lambda):
        return _is_log(node.body)
    if _is_text(node):
        return True
    if isinstance(node, cst.If):
        return m.matches(node.test, m.Name("TYPE_CHECKING"))
    if isinstance(node, cst.Assign):
        return any(m.matches(t.target, m.Name()) and t.target.value in TYPE_ONLY_NAMES for t in node.targets)
    return False


def _is_text(node: cst.CSTNode) -> bool:
    """Prose, or put together: a text for people, or the name of a task."""
    if isinstance(node, cst.SimpleString):
        return bool(re.search(r"\s", node.value))
    return isinstance(node, cst.FormattedString | cst.ConcatenatedString)


def _is_log(node: cst.CSTNode) -> bool:
    """`log.info(...)`, `self._log.info(...)`."""
    if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
        return False
    owner = node.func.value
    name = owner.attr if isinstance(owner, cst.Attribute) else owner
    return isinstance(name, cst.Name) and name.value in LOGS


def _called(node: cst.Call) -> str:
    name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
    return name.value if isinstance(name, cst.Name) else ""
