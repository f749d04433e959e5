"""The house's one pattern for what can be added: a frozen dataclass, one decorator, typed parameters, an entry point.

Operators, methods and schedules are each a `Registry`.  A part of this package is a module, or a folder, of the
registry's package and registers when that is imported, which must be quick: torch and Megatron only inside functions.
An outside package declares an entry point in the registry's group, and the module that it names registers likewise:

    @register
    @dataclass(frozen=True)
    class Mine(Method): ...

A part is found by its `name`; its fields are its parameters, validated by their types, unknown ones refused.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_growth import words
from megatron_growth.errors import UserError, nearest, within

_OURS = ("megatron_growth", "builtins", "abc", "typing")
_PACKAGES: dict[str, str] = {}  # name and version of each installed package with parts, by its module


class Registry[T]:
    """The parts of one kind, by name.

    Args:
        kind: what a part is called in messages, such as "width operator".
        package: every module and folder in it is imported before a part is looked up.
        group: the entry points that outside packages declare.
        error: the class of the errors.
    """

    def __init__(self, kind: str, package: str, group: str, error: type[UserError]) -> None:
        self.kind, self.package, self.group, self.error = kind, package, group, error
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register[C](self, cls: type[C]) -> type[C]:
        """Class decorator: make a part known by its `name`; two may not share one."""
        name, missing = getattr(cls, "name", ""), sorted(getattr(cls, "__abstractmethods__", ()))
        if not name or missing:
            what = f"lacks {', '.join(missing)}" if missing else "has no name"
            raise self.error(
                f"a {self.kind} {what}",
                where=f"{cls.__module__}.{cls.__qualname__}",
                fix="complete the class, or uninstall its package",
            )
        known = self._classes.setdefault(name, cls)  # type: ignore[arg-type]
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise self.error(
                f"two {self.kind}s are called {name!r}",
                where=f"{known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__}",
                fix="rename one of them",
            )
        self._name_in_errors(cls)
        return cls

    def _name_in_errors(self, cls: type) -> None:
        """Let what a part of an outside package raises say whose it is; the exception is the same.

        Only the functions that the package wrote: what they inherit from ours is ours.
        """
        foreign = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in _OURS]
        if cls not in foreign:
            return
        root = cls.__module__.partition(".")[0]
        package = f", package {_PACKAGES[root]}" if root in _PACKAGES else ""
        part = f"{self.kind} {getattr(cls, 'name', '')!r} ({cls.__module__}.{cls.__qualname__}{package})"
        for base in reversed(foreign):
            for name, value in list(vars(base).items()):
                if not name.startswith("_"):
                    setattr(cls, name, _named(value, part))

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load_all()
        return sorted(self._classes)

    def find(self, name: str) -> type[T]:
        """The class of a registered part; an error with the nearest names when there is none."""
        self._load_all()
        if name not in self._classes:
            raise self.error(f"no {self.kind} is called {name!r}", fix=self.advice(name))
        return self._classes[name]

    def advice(self, name: str) -> str:
        """What to do about a name that nothing has: the nearest names, or what its package left out."""
        for point in entry_points(group=self.group, name=name):
            return f"{point.value} was imported but registers no {name!r}: put @register on the class, with that `name`"
        fix = nearest(name, self.names())
        return f"{fix}; or install the package that adds it" if fix.startswith("known") else fix

    def get(self, spec: str | Mapping[str, Any], /, **overrides: Any) -> T:
        """A part from its written form.

        Args:
            spec: `NAME`, `NAME:parameter=value,...`, or a mapping `{"name": NAME, "parameter": value}`.
            overrides: parameters that win over those of `spec`.

        Raises:
            UserError: of the registry's class: the name or a parameter is unknown, missing or given twice, or a value
                has the wrong type or is not finite.
        """
        name, parameters = self.read(spec)
        return self.make(name, **(parameters | overrides))

    def make(self, name: str, /, **parameters: Any) -> T:
        """A part by name and parameters; errors as in `get`."""
        cls = self.find(name)
        known = fields_of(cls)
        for key in (key for key in parameters if key not in known):
            is_plain = not vars(cls).get("__dataclass_fields__") and key in inspect.get_annotations(cls)
            fix = f"put @dataclass(frozen=True) on {cls.__qualname__}" if is_plain else nearest(key, known)
            raise self.error(f"the {self.kind} {name!r} has no parameter {key!r}", fix=fix)
        for key, value in parameters.items():
            if _is_not_finite(value, known[key]):
                raise self.error(f"the {self.kind} {name!r}: {key} is {value}, not a finite number", where=key)
        missing = [key for key, f in known.items() if is_required(f) and key not in parameters]
        if missing:
            raise self.error(f"the {self.kind} {name!r} needs {' and '.join(missing)}", where=", ".join(missing))
        try:
            part: T = _adapter(cls).validate_python(parameters)  # type: ignore[arg-type]
        except ValidationError as error:
            where, what = _wrong(error, known)
            raise self.error(f"the {self.kind} {name!r}: {what}", where=where) from None
        return part

    def read(self, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Name and parameters of a written form, not yet validated."""
        if not isinstance(spec, str):
            parameters = dict(spec)
            if "name" not in parameters:
                raise self.error(f"a {self.kind} without a name", fix=f"add name: {' or '.join(self.names())}")
            return str(parameters.pop("name")), parameters
        try:
            return words.parse(spec)
        except ValueError as error:
            raise self.error(
                f"cannot read the {self.kind} {spec!r}: {error}", fix="write NAME:parameter=value,parameter=value"
            ) from None

    def document(self, part: T) -> dict[str, Any]:
        """`{"name": NAME, "parameter": value}` with the parameters that differ from their defaults; for `get`."""
        changed = {
            key: getattr(part, key) for key, f in fields_of(type(part)).items() if getattr(part, key) != _default(f)
        }
        return {"name": getattr(part, "name", ""), **changed}

    def written(self, part: T) -> str:
        """`NAME:parameter=value,...` of a part; `get` reads it back."""
        document = self.document(part)
        return words.write(document.pop("name"), document)

    def _load_all(self) -> None:
        """Import every module of the package, and every part that an installed package offers; once."""
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            if point.dist:
                _PACKAGES[point.module.partition(".")[0]] = f"{point.dist.name} {point.dist.version}"
            try:
                point.load()
            except UserError:  # it cannot be registered
                raise
            except Exception as error:
                raise self.error(
                    f"the {self.kind} package {point.value!r} cannot be imported: {_said(error)}",
                    where=f"entry point {point.name!r} of {point.dist.name if point.dist else 'an unknown package'}",
                    fix="repair or uninstall that package",
                ) from error
        self._loaded = True

    def forget_loaded(self) -> None:
        """Look for outside packages again at the next look-up; for tests that install one."""
        self._loaded = False


def _named(value: Any, part: str) -> Any:
    """A function, class method, static method or property within which errors are noted as the part's."""
    if isinstance(value, classmethod | staticmethod):
        return type(value)(_named(value.__func__, part))
    if isinstance(value, property):
        return property(_named(value.fget, part), value.fset, value.fdel, value.__doc__)
    if not inspect.isfunction(value):
        return value

    @functools.wraps(value)
    def function(*args: Any, **kwargs: Any) -> Any:
        with within(part):
            return value(*args, **kwargs)

    return function


def _wrong(error: ValidationError, known: Collection[str]) -> tuple[str, str]:
    """The first parameter of a wrong type, and a sentence with all types that it may have."""
    found = error.errors()
    first, may_be = found[0], "Input should be "
    # pydantic puts the name of a type behind a parameter that may have several
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
    what = first["msg"].replace("Input", where, 1) if where else first["msg"]
    if len(first["loc"]) > 1:
        same = [e["msg"] for e in found if e["loc"][0] == first["loc"][0] and e["input"] == first["input"]]
        what += "".join(f", or {msg.removeprefix(may_be)}" for msg in same[1:] if msg.startswith(may_be))
    return where, f"{what.replace('a valid tuple', 'a list')} (got {first['input']!r})"


def _said(error: Exception) -> str:
    """What stopped an import; only an ImportError says so by its words alone."""
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def fields_of(cls: type) -> dict[str, Field[Any]]:
    """The parameters of a part's class by name: its fields."""
    return {f.name: f for f in fields(cls)}


def is_required(parameter: Field[Any]) -> bool:
    """Whether a parameter has no default."""
    return parameter.default is MISSING and parameter.default_factory is MISSING


def _default(parameter: Field[Any]) -> Any:
    factory: Callable[[], Any] | Any = parameter.default_factory
    return parameter.default if factory is MISSING else factory()


def _is_not_finite(value: Any, parameter: Field[Any]) -> bool:
    """Whether a value is nan or infinite; for a parameter that is a number also when it is written as text."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str) and "float" in str(parameter.type):
        try:
            return not math.isfinite(float(value))
        except ValueError:
            return False
    return False
