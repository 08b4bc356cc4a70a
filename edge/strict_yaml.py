"""YAML into typed structs, strictly: every mistake of a file at once, each with its line. Knows nothing of ours.

msgspec stops at the first error and has no lines, so the YAML is composed into nodes (which carry marks) and walked
beside the struct's type; each leaf is converted alone. Box and bridge configs are both read with it.
"""

import difflib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
import msgspec.inspect as mi
import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_OPEN_BRACKETS = 1000  # before PyYAML sees it: 100,000 took it half a minute
MAX_NODES = 50_000  # aliases may repeat nodes: bounds what a small file can unfold to

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a file, as a person needs it."""

    file: str
    line: int
    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " + (f"{self.key} " if self.key else "")
        return f"{where}is {self.found}, expected {self.expected}"


class YamlErrors(ValueError):
    """All mistakes of one file, in the order of its lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda m: m.line)
        super().__init__("\n".join(map(str, self.mistakes)))


class KeyMistake(ValueError):
    """Raised by a struct's `__post_init__` to point at one of its keys."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        self.key, self.found, self.expected = key, str(found), expected
        super().__init__(f"{key} is {found}, expected {expected}")


class Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret by name: the value lies in systemd's credentials folder or in a 0600 file, never in the config."""

    credential: str

    def __post_init__(self) -> None:
        if not self.credential or "/" in self.credential or self.credential.startswith("."):
            raise KeyMistake("credential", repr(self.credential), "the plain name of a credential file")

    def read(self, directories: Sequence[Path]) -> str:
        """Return the secret from `$CREDENTIALS_DIRECTORY` or the first of `directories` that has it.

        Raises:
            ValueError: it is nowhere, or others than its owner may read it.
        """
        service = os.environ.get("CREDENTIALS_DIRECTORY")
        for folder in [*([Path(service)] if service else []), *directories]:
            path = folder / self.credential
            if not path.is_file():
                continue
            if str(folder) != service and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ValueError(f'credential file {path} can be read by others; run "chmod 600 {path}"')
            return path.read_text().rstrip("\n")
        places = ", ".join(str(d) for d in directories) or "no folder given"
        raise ValueError(
            f"credential {self.credential!r} was not found in $CREDENTIALS_DIRECTORY or {places}; "
            f"write it to a file of that name, mode 0600"
        )


def load(path: Path, type_: type[T]) -> T:
    """Read the YAML file at `path` as `type_`.

    Raises:
        YamlErrors: everything that is wrong with it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise YamlErrors([Mistake(str(path), 0, "", f"unreadable ({error.strerror})", "a YAML file")]) from error
    return loads(data, type_, name=str(path))


def loads(data: bytes, type_: type[T], *, name: str = "<config>") -> T:
    """Read YAML text as `type_`; `name` stands for the file in messages."""
    root = _compose(data, name)
    walker = _Walker(name)
    value = walker.convert(root, mi.type_info(type_), "", 0)
    if walker.mistakes:
        raise YamlErrors(walker.mistakes)
    return cast(T, value)


def line_of(path: Path, key: str) -> int:
    """Return the line of a key such as `cameras[0].source.uri`, or of the nearest thing around it that is there.

    For what is found only after a file was read. A key may hold dots itself: the longest that is there is meant.
    """
    node, line, rest = yaml.compose(path.read_bytes().decode("utf-8"), Loader=yaml.SafeLoader), 1, key
    while rest and node is not None:
        line = node.start_mark.line + 1
        node, rest = _inside(node, rest)
    return line if node is None else node.start_mark.line + 1


def _inside(node: yaml.Node, key: str) -> tuple[yaml.Node | None, str]:
    """Return the node that the first part of a key names, and the rest of the key."""
    if isinstance(node, yaml.SequenceNode) and (index := re.match(r"\[(\d+)\]\.?", key)):
        entry = int(index[1])
        return (node.value[entry] if entry < len(node.value) else None), key[index.end() :]
    if isinstance(node, yaml.MappingNode):
        for name, value in sorted(node.value, key=lambda pair: -len(str(pair[0].value))):
            if key == name.value or key.startswith((f"{name.value}.", f"{name.value}[")):
                return value, key[len(name.value) :].removeprefix(".")
    return None, key


def _compose(data: bytes, name: str) -> yaml.Node:
    if len(data) > MAX_BYTES:
        raise YamlErrors([Mistake(name, 1, "", f"{len(data)} bytes long", f"at most {MAX_BYTES}")])
    if _open_brackets(data) > MAX_OPEN_BRACKETS:
        raise YamlErrors([Mistake(name, 1, "", "nested too deeply", f"at most {MAX_DEPTH} levels")])
    try:
        root = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise YamlErrors([Mistake(name, 1, "", f"not UTF-8 at byte {error.start}", "UTF-8 text")]) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlErrors([Mistake(name, line, "", f"not YAML ({error.problem})", "valid YAML")]) from error
    except (yaml.YAMLError, RecursionError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise YamlErrors([Mistake(name, 1, "", f"not YAML ({what})", "valid YAML")]) from error
    if root is None:
        raise YamlErrors([Mistake(name, 1, "", "empty", "a mapping of keys to values")])
    return root


def _open_brackets(data: bytes) -> int:
    """Return how many brackets are open at most, those in texts included: PyYAML's time grows with their square."""
    depth = deepest = 0
    for bracket in re.finditer(rb"[\[\]{}]", data):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


_FAILED = object()


class _Walker:
    """Walk nodes beside types, collecting mistakes; a part with a mistake comes back as _FAILED."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mistakes: list[Mistake] = []
        self._nodes = 0

    def convert(self, node: yaml.Node, type_: mi.Type, key: str, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            if self._nodes <= MAX_NODES + 1 or depth > MAX_DEPTH:
                self._wrong(node, key, "nested too deeply or too large", f"at most {MAX_DEPTH} levels")
            return _FAILED
        if isinstance(type_, mi.UnionType):
            type_ = self._choose(node, type_)
        match type_:
            case mi.Metadata(type=inner):
                return self.convert(node, inner, key, depth + 1)
            case mi.StructType():
                return self._struct(node, type_, key, depth)
            case mi.ListType(item_type=item) | mi.VarTupleType(item_type=item):
                return self._sequence(node, type_, item, key, depth)
            case mi.DictType(value_type=value):
                return self._dict(node, value, key, depth)
            case _:
                return self._leaf(node, type_, key)

    def _choose(self, node: yaml.Node, union: mi.UnionType) -> mi.Type:
        """Pick the member a node's form fits: a mapping a struct, a sequence a list, else the scalars."""
        members = [t.type if isinstance(t, mi.Metadata) else t for t in union.types]
        for member in members:
            fits = (
                (isinstance(node, yaml.MappingNode) and isinstance(member, mi.StructType | mi.DictType))
                or (isinstance(node, yaml.SequenceNode) and isinstance(member, mi.ListType | mi.VarTupleType))
                or (node.tag.endswith(":null") and isinstance(member, mi.NoneType))
            )
            if fits:
                return member
        rest = tuple(t for t in members if not isinstance(t, mi.StructType | mi.NoneType))
        structs = tuple(t for t in members if isinstance(t, mi.StructType))
        if not rest:
            return structs[0]
        return rest[0] if len(rest) == 1 else mi.UnionType(rest)

    def _struct(self, node: yaml.Node, type_: mi.StructType, key: str, depth: int) -> Any:
        if not isinstance(node, yaml.MappingNode):
            if type_.cls is Credential:  # what stands here is the secret itself: it must not be printed
                return self._wrong(node, key, "written out", "{credential: NAME}, the name of a file that holds it")
            return self._wrong(node, key, _found(node), _expected(type_))
        fields = {f.encode_name: f for f in type_.fields}
        marks: dict[str, yaml.Node] = {}
        values: dict[str, Any] = {}
        before = len(self.mistakes)
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            path = f"{key}.{name}" if key else name
            if name in marks:
                self._wrong(name_node, path, "given twice", "once")
            elif name not in fields:
                self._wrong(name_node, path, "not a known key", _suggest(name, fields))
            else:
                marks[name] = value_node
                values[fields[name].name] = self.convert(value_node, fields[name].type, path, depth + 1)
        for field in type_.fields:
            if field.required and field.encode_name not in marks:
                path = f"{key}.{field.encode_name}" if key else field.encode_name
                self._wrong(node, path, "missing", _expected(field.type))
                values[field.name] = _FAILED
        failed = {name for name, value in values.items() if value is _FAILED}
        try:
            made = type_.cls(**values)
        except KeyMistake as error:
            return self._checked([error], node, marks, key, failed)
        except ExceptionGroup as group:
            return self._checked([e for e in group.exceptions if isinstance(e, KeyMistake)], node, marks, key, failed)
        except (AttributeError, TypeError, ValueError):
            if not failed:  # a check that stumbles over a part already reported says nothing new
                raise
            return _FAILED
        return made if len(self.mistakes) == before else _FAILED

    def _checked(
        self, errors: Sequence[KeyMistake], node: yaml.Node, marks: dict[str, yaml.Node], key: str, failed: set[str]
    ) -> Any:
        """Report what a struct's own check found, unless it speaks of a part that is already reported."""
        for error in errors:
            name = error.key.split(".")[0].split("[")[0]
            if name not in failed:
                self._wrong(
                    marks.get(name, node), f"{key}.{error.key}" if key else error.key, error.found, error.expected
                )
        return _FAILED

    def _sequence(self, node: yaml.Node, type_: mi.Type, item: mi.Type, key: str, depth: int) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._wrong(node, key, _found(node), _expected(type_))
        values = [self.convert(n, item, f"{key}[{i}]", depth + 1) for i, n in enumerate(node.value)]
        if any(v is _FAILED for v in values):
            return _FAILED
        least = getattr(type_, "min_length", None) or 0
        if len(values) < least:
            return self._wrong(node, key, f"a list of {len(values)}", f"at least {least} entries")
        return tuple(values) if isinstance(type_, mi.VarTupleType) else values

    def _dict(self, node: yaml.Node, value_type: mi.Type, key: str, depth: int) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._wrong(node, key, _found(node), "a mapping")
        out: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            if name in out:
                self._wrong(name_node, f"{key}.{name}", "given twice", "once")
            out[name] = self.convert(value_node, value_type, f"{key}.{name}", depth + 1)
        return _FAILED if any(v is _FAILED for v in out.values()) else out

    def _leaf(self, node: yaml.Node, type_: mi.Type, key: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) and not isinstance(type_, mi.TupleType | mi.AnyType):
            return self._wrong(node, key, _found(node), _expected(type_))
        try:
            value = _construct(node)
        except (yaml.YAMLError, ValueError, RecursionError):
            return self._wrong(node, key, _found(node), _expected(type_))
        try:
            return msgspec.convert(value, _python_type(type_), strict=True)
        except msgspec.ValidationError:
            return self._wrong(node, key, _found(node), _expected(type_))

    def _wrong(self, node: yaml.Node, key: str, found: str, expected: str) -> Any:
        self.mistakes.append(Mistake(self.name, node.start_mark.line + 1, key, found, expected))
        return _FAILED


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _python_type(type_: mi.Type) -> Any:
    """Return the annotation behind an inspected leaf type, constraints included."""
    match type_:
        case mi.Metadata(type=inner):
            return _python_type(inner)
        case mi.IntType(ge=ge, gt=gt, le=le, lt=lt) | mi.FloatType(ge=ge, gt=gt, le=le, lt=lt):
            base: Any = int if isinstance(type_, mi.IntType) else float
            return _annotated(base, ge=ge, gt=gt, le=le, lt=lt)
        case mi.StrType(min_length=least, max_length=most, pattern=pattern):
            return _annotated(str, min_length=least, max_length=most, pattern=pattern)
        case mi.BoolType():
            return bool
        case mi.NoneType():
            return None
        case mi.LiteralType(values=values):
            return Literal[values]
        case mi.UnionType(types=types):
            union: Any = _python_type(types[0])
            for other in types[1:]:
                union = union | _python_type(other)
            return union
        case mi.TupleType(item_types=items):
            return tuple[tuple(_python_type(i) for i in items)]  # type: ignore[misc]
        case mi.EnumType(cls=cls) | mi.StructType(cls=cls):
            return cls
        case mi.DateTimeType(tz=tz):
            return _annotated(datetime, tz=tz)
        case mi.DateType():
            return date
        case _:
            return Any


def _annotated(base: Any, **limits: Any) -> Any:
    given = {k: v for k, v in limits.items() if v is not None}
    return Annotated[base, msgspec.Meta(**given)] if given else base


def _expected(type_: mi.Type) -> str:
    match type_:
        case mi.Metadata(type=inner, extra_json_schema=extra):
            described = (extra or {}).get("description")
            return f"{_expected(inner)} ({described})" if described else _expected(inner)
        case mi.IntType(ge=ge, gt=gt, le=le, lt=lt) | mi.FloatType(ge=ge, gt=gt, le=le, lt=lt):
            noun = "a whole number" if isinstance(type_, mi.IntType) else "a number"
            if ge is not None and le is not None:
                return f"{noun}, {ge:g}–{le:g}"
            limits = [f"{w} {v:g}" for w, v in (("≥", ge), (">", gt), ("≤", le), ("<", lt)) if v is not None]
            return " ".join([noun, *limits])
        case mi.StrType(pattern=pattern):
            return f"text matching {pattern}" if pattern else "text (quote it if it looks like a number)"
        case mi.BoolType():
            return "true or false"
        case mi.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case mi.UnionType(types=types):
            return " or ".join(_expected(t) for t in types)
        case mi.ListType(item_type=item) | mi.VarTupleType(item_type=item):
            return f"a list, each entry {_expected(item)}"
        case mi.TupleType(item_types=items):
            return "[" + ", ".join(_expected(i) for i in items) + "]"
        case mi.StructType(fields=fields):
            return "a mapping with the keys " + ", ".join(f.encode_name for f in fields)
        case mi.DictType():
            return "a mapping"
        case mi.NoneType():
            return "nothing"
        case mi.DateTimeType():
            return "a date and time with a zone, such as 2026-01-31T08:00:00Z"
        case mi.DateType():
            return "a day, such as 2026-01-31"
        case _:
            return type(type_).__name__.removesuffix("Type").lower()


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    text = str(node.value)
    return repr(text if len(text) <= 60 else text[:57] + "…") if text else "empty"


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'"{near[0]}" (did you mean that?)' if near else "one of " + ", ".join(known)
