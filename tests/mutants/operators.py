"""Every mutant of a source: mutmut's operators, and a `return` without its value.

Of mutmut's are left out what hardly any code survives: None in the place of an argument, and other
cases of the letters of a string. Left alone is what says or describes: docstrings, annotations,
imports, decorators, `__all__`, what is raised, f-strings, strings with a space in them; and
`strict=True` of zip, which asserts what is so anyway.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_string

ALONE = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise, cst.FormattedString)

DOCSTRING = m.Expr(m.SimpleString() | m.ConcatenatedString())
NAMES = m.Assign([m.AssignTarget(m.Name("__all__"))])
STRICT = m.Arg(keyword=m.Name("strict"), value=m.Name("True"))


def _without_value(node: cst.Return) -> Iterable[cst.Return]:
    has_value = node.value is not None and not m.matches(node.value, m.Name("None"))
    return [node.with_changes(value=None)] if has_value else []


def _shorter_call(node: cst.Call) -> Iterable[cst.Call]:
    strict = sum(m.matches(arg, STRICT) for arg in node.args)
    shorter = (new for new in operator_arg_removal(node) if len(new.args) < len(node.args))
    return [new for new in shorter if sum(m.matches(arg, STRICT) for arg in new.args) == strict]


def _other_string(node: cst.BaseString) -> Iterable[cst.BaseString]:
    return list(operator_string(node))[:1] if " " not in getattr(node, "value", " ") else []


INSTEAD = {operator_arg_removal: _shorter_call, operator_string: _other_string}
OPERATORS = (
    *((kind, INSTEAD.get(operator, operator)) for kind, operator in mutation_operators),
    (cst.Return, _without_value),
)


@dataclass(frozen=True)
class Mutant:
    """path: of the source, below the root · lines: first and last of the statement · imported:
    whether it runs when the module is imported · before, after: the lines that change · nth: of
    those that read the same · source: the whole module, mutated"""

    path: str
    lines: tuple[int, int]
    imported: bool
    operator: str
    before: str
    after: str
    nth: int
    source: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The same as long as its lines are."""
        return self.path, self.before, self.after, self.nth

    def place(self, seed: int) -> str:
        """By which it is drawn: a change elsewhere leaves a sample as it is."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()


def mutants(path: str, source: str) -> list[Mutant]:
    """In the order of the source. Each compiles, and none is there twice."""
    finder = _Finder(source)
    MetadataWrapper(cst.parse_module(source)).visit(finder)
    found, seen, alike = [], {source}, Counter()
    for change in finder.changes:
        mutated = change.applied(source)
        if mutated in seen or not _compiles(mutated):
            continue
        seen.add(mutated)
        before, after = (change.told(text, source) for text in (source, mutated))
        nth = alike[before, after]
        alike[before, after] += 1
        lines, imported, name = change.lines, change.imported, change.operator
        found.append(Mutant(path, lines, imported, name, before, after, nth, mutated))
    return found


@dataclass(frozen=True)
class _Change:
    start: int  # in bytes
    end: int
    code: str
    operator: str
    lines: tuple[int, int]
    imported: bool

    def applied(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.code.encode() + data[self.end :]).decode()

    def told(self, text: str, source: str) -> str:
        """The lines of `text`, `source` or the mutated, that the change is on."""
        data = text.encode()
        end = self.end + len(data) - len(source.encode())
        first, last = data.rfind(b"\n", 0, self.start) + 1, data.find(b"\n", end)
        return " ".join(data[first : last if last >= 0 else None].decode().split())


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, ByteSpanPositionProvider)

    def __init__(self, source: str):
        super().__init__()
        self._data, self._module = source.encode(), cst.parse_module(source)
        self._functions = 0
        self._statements: list[cst.CSTNode] = []
        self.changes: list[_Change] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, ALONE) or m.matches(node, STRICT):
            return False
        if isinstance(node, cst.SimpleStatementLine):
            if m.matches(node.body[0], DOCSTRING | NAMES):
                return False
            self._statements.append(node)
        self._functions += isinstance(node, (cst.FunctionDef, cst.Lambda))
        self.changes.extend(self._changes(node))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._statements and self._statements[-1] is original_node:
            self._statements.pop()
        self._functions -= isinstance(original_node, (cst.FunctionDef, cst.Lambda))

    def _changes(self, node: cst.CSTNode) -> Iterator[_Change]:
        span = self.get_metadata(ByteSpanPositionProvider, node, None)
        if span is None:
            return
        start, end = span.start, span.start + span.length
        old = self._data[start:end].decode()
        whole = self._module.code_for_node(node)  # with brackets around it, without its indent
        if "".join(old.split()) not in "".join(whole.split()):
            assert not self._new(node), f"cannot be cut out: {old}"
            return
        where = self._statements[-1] if self._statements else node
        place = self.get_metadata(PositionProvider, where)
        lines = (place.start.line, place.end.line)
        for name, new in self._new(node):
            code = self._module.code_for_node(new)
            yield _Change(start, end, code, name, lines, not self._functions)

    def _new(self, node: cst.CSTNode) -> list[tuple[str, cst.CSTNode]]:
        return [
            (operator.__name__.removeprefix("operator").strip("_"), new)
            for kind, operator in OPERATORS
            if isinstance(node, kind)
            for new in operator(node)
        ]
