"""Typed configuration: dataclasses, YAML files that inherit, and the command line.

A network's configuration is a dataclass of groups of ``key(...)`` fields. Values come from, in
rising precedence: the dataclass, the YAML bases, the YAML file, the environment (ModelArts keys
only), the command line. Keys are dotted (``optimizer.lr``); ModelZoo's flat spellings are
aliases declared beside the field they mean. Unknown keys are refused with the nearest name.
"""

import dataclasses
import difflib
import math
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from model_utils.errors import UserError
from model_utils.files import atomic_write, require_file

ConfigT = TypeVar("ConfigT")
BASE_KEYS = ("base", "__BASE__")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null", "~", ""}
_BOUNDS = (
    ("minimum", operator.ge, "at least"),
    ("maximum", operator.le, "at most"),
    ("below", operator.lt, "below"),
)


def key(
    default: Any,
    meaning: str,
    *aliases: str,
    choices: Sequence[Any] | None = None,
    synonyms: Mapping[str, str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    environment: bool = False,
) -> Any:
    """Declare one configuration key.

    Args:
        default: its default; lists and dicts are copied.
        meaning: one line for ``--help``.
        aliases: other spellings, accepted in YAML and on the command line. ``"export:height"``
            holds for the command ``export`` only, where it outranks an unqualified alias.
        choices: the values allowed, compared without regard to case for text.
        synonyms: other names of choices, likewise; of a dotted name the last part counts.
        minimum, maximum: inclusive bounds of a number, or of each number of a list.
        below: exclusive upper bound.
        environment: read the environment variable of the key's own name if it is set.
    """
    metadata = {
        "meaning": meaning,
        "aliases": aliases,
        "choices": choices,
        "synonyms": synonyms or {},
        "minimum": minimum,
        "maximum": maximum,
        "below": below,
        "environment": environment,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(kind: type, **overrides: Any) -> Any:
    """Declare a nested group of keys, optionally with other defaults than its class has."""
    return dataclasses.field(default_factory=lambda: kind(**overrides))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of a configuration class: where it lives, its type and its declaration."""

    path: str
    kind: Any
    field: dataclasses.Field
    default: Any

    def names(self, command: str) -> list[str]:
        """Every spelling accepted for this key under ``command``, its own path first."""
        names = [self.path]
        for alias in self.field.metadata.get("aliases", ()):
            scope, _, name = alias.rpartition(":")
            if scope in ("", command):
                names.append(name)
        return names


def entries(config: Any, prefix: str = "") -> list[Entry]:
    """All leaves of a configuration object, in declaration order."""
    hints = typing.get_type_hints(type(config))
    leaves = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = prefix + field.name
        if dataclasses.is_dataclass(value):
            leaves += entries(value, path + ".")
        else:
            leaves.append(Entry(path, hints[field.name], field, value))
    return leaves


class _Index:
    """Looks up spellings; a spelling qualified by the command outranks a general one."""

    def __init__(self, config: Any, command: str) -> None:
        self.entries = entries(config)
        self.command = command
        self.by_name: dict[str, Entry] = {}
        for entry in self.entries:
            self.by_name[_plain(entry.path)] = entry
        for qualified in (True, False):
            for entry in self.entries:
                for alias in entry.field.metadata.get("aliases", ()):
                    scope, _, name = alias.rpartition(":")
                    if bool(scope) == qualified and scope in ("", command):
                        # The first declared wins where one class of keys serves two groups.
                        self.by_name.setdefault(_plain(name), entry)
        # Other implementations' flags: further spellings, switches that stand for a value of a
        # key, and flags that mean nothing here, with the reason.
        self.spellings: Mapping[str, str] = getattr(type(config), "SPELLINGS", {})
        for name, path in self.spellings.items():
            self.by_name.setdefault(name, self.by_name[path])
        self.switches: Mapping[str, tuple[str, str]] = getattr(type(config), "SWITCHES", {})
        self.legacy: Mapping[str, str] = getattr(type(config), "LEGACY", {})

    def find(self, name: str, source: str) -> Entry | None:
        """The entry of a spelling; None for a legacy key; UserError for an unknown one."""
        entry = self.by_name.get(_plain(name))
        if entry is not None:
            return entry
        if name in self.legacy:
            return None
        raise UserError(f"{source}: unknown key '{name}'{self.suggest(name)}")

    def is_group(self, name: str) -> bool:
        """Whether keys exist below this name."""
        return any(known.startswith(_plain(name) + ".") for known in self.by_name)

    def suggest(self, name: str) -> str:
        """Text that names the nearest known key."""
        known = list(self.by_name)
        close = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.5)
        if not close:
            # The last part alone often is the right word in the wrong group.
            tails = {known_name.rpartition(".")[2]: known_name for known_name in known}
            tail = difflib.get_close_matches(_plain(name).rpartition(".")[2], tails, n=1)
            close = [tails[tail[0]]] if tail else []
        return f"; did you mean '{close[0]}'?" if close else "; --help lists every key"


def _plain(name: str) -> str:
    return name.replace("-", "_")


def load(
    defaults: ConfigT,
    argv: Sequence[str],
    *,
    command: str,
    folders: Iterable[Path] = (),
    default_file: str | None = None,
    describe: str = "",
) -> ConfigT:
    """Build a configuration from files and the command line.

    Args:
        defaults: an object of the configuration class, holding the built-in values. It is
            filled in and returned.
        argv: the command line without the program's name. ``--config_path NAME_OR_FILE``
            chooses the YAML file, ``--help`` prints every key and exits.
        command: train, eval, export, infer or convert; selects qualified aliases.
        folders: where NAME is looked up, with or without ``.yaml``.
        default_file: NAME used without ``--config_path``; None for the built-in values.
        describe: first lines of the help text.

    Raises:
        UserError: unknown key, value of the wrong type, missing or malformed file.
    """
    index = _Index(defaults, command)
    given = _parse_command_line(argv, index)
    folders = list(folders)
    name = given.pop("config_path", default_file)
    if name:
        path = find_file(name, folders)
        for dotted, value in read_yaml(path, folders).items():
            _assign(defaults, index, dotted, value, str(path))
    if "help" in given:
        print(help_text(_Index(defaults, command), describe))
        raise SystemExit(0)
    for entry in index.entries:
        if entry.field.metadata.get("environment") and entry.field.name in os.environ:
            text = os.environ[entry.field.name]
            _assign(defaults, index, entry.path, text, f"environment variable {entry.field.name}")
    unknown = []
    for dotted, value in given.items():
        try:
            _assign(defaults, index, dotted, value, "command line")
        except UserError as error:
            if "unknown key" not in str(error):
                raise
            unknown.append((dotted, error))
    # Cloud platforms add flags of their own; a typing error at home must not pass.
    if unknown and not getattr(defaults, "enable_modelarts", False):
        raise unknown[0][1]
    for dotted, _ in unknown:
        print(f"warning: ignoring --{dotted}, which no key of this network is named", flush=True)
    return defaults


def find_file(name: str, folders: Sequence[Path]) -> Path:
    """A configuration file by path, or by name in one of the folders."""
    direct = Path(name)
    if direct.suffix in (".yaml", ".yml") and direct.is_file():
        return direct.resolve()
    known: list[str] = []
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate.resolve()
        known += sorted(path.stem for path in folder.glob("*.yaml"))
    close = difflib.get_close_matches(direct.stem, known, n=1, cutoff=0.3)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    names = f" (known names: {', '.join(known)})" if known else ""
    raise UserError(f"configuration {name} does not exist{hint}{names}")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-6 as text and refuses duplicate keys silently; this loader does neither."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key given twice in one mapping, before merge keys (``<<``) add others."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours; the constructor refuses it
            if key_node.value in seen:
                raise yaml.YAMLError(
                    f"key '{key_node.value}' stands twice, line {key_node.start_mark.line + 1}"
                )
            seen.add(key_node.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(
    path: Path, folders: Sequence[Path] = (), _chain: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Flat dotted keys of a YAML file and the files it inherits from.

    ``base: NAME`` or ``base: [NAME, ...]`` (also ModelZoo's ``__BASE__``) names files relative
    to this one, or known names; later ones and the file itself win. ModelZoo files of three
    documents (values, help, choices) are read for their values.

    Raises:
        UserError: missing or malformed file, or files that inherit from each other in a circle.
    """
    if path in _chain:
        circle = " -> ".join(str(p) for p in (*_chain, path))
        raise UserError(f"configuration files inherit in a circle: {circle}")
    values = _parse_yaml(path)
    merged: dict[str, Any] = {}
    for base_key in BASE_KEYS:
        for base in _base_names(values.pop(base_key, None), path):
            relative = path.parent / base
            found = relative.resolve() if relative.is_file() else find_file(base, folders)
            _override(merged, read_yaml(found, folders, (*_chain, path)))
    _override(merged, _flatten(values))
    return merged


def _parse_yaml(path: Path) -> dict[Any, Any]:
    """The first document of a YAML file, which must be a mapping."""
    require_file(path, "configuration")
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))
    # ValueError: bytes that are not UTF-8, dates that do not exist.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"configuration {path} cannot be read: {error.strerror}") from error
    values = documents[0] if documents and documents[0] is not None else {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, not a {type(values).__name__}")
    return values


def _base_names(bases: Any, path: Path) -> list[str]:
    names = [] if bases is None else bases if isinstance(bases, list) else [bases]
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{path}: base={name!r} is not the name of a configuration file")
    return names


def _override(merged: dict[str, Any], later: Mapping[str, Any]) -> None:
    # To the end: values are assigned in order, and two spellings may mean one key.
    for name, value in later.items():
        merged.pop(name, None)
        merged[name] = value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _parse_command_line(argv: Sequence[str], index: _Index) -> dict[str, Any]:
    given: dict[str, Any] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            given["help"] = True
            continue
        if not argument.startswith("--"):
            raise UserError(
                f"'{argument}' stands alone on the command line; options are --key=value"
            )
        name, equals, value = argument[2:].partition("=")
        entry = index.by_name.get(_plain(name))
        if equals:
            given[name] = value
        elif arguments and not arguments[0].startswith("--"):
            given[name] = arguments.pop(0)
        elif entry is None or _is_bool(entry.kind):
            given[name] = "true"
        else:
            raise UserError(f"--{name} needs a value: --{name}=...")
    return given


def _is_bool(kind: Any) -> bool:
    return kind is bool or bool in typing.get_args(kind)


def _assign(config: Any, index: _Index, name: str, value: Any, source: str) -> None:
    if value is None and _plain(name) not in index.by_name and index.is_group(name):
        return  # a YAML group with all its keys left out
    if name in index.switches:
        if _convert(value, bool, name, source):
            _assign(config, index, *index.switches[name], source)
        return
    entry = index.find(name, source)
    if entry is None:
        print(f"note: {source}: '{name}' has no effect here ({index.legacy[name]})", flush=True)
        return
    converted = _convert(value, entry.kind, name, source)
    if isinstance(converted, str):
        last = converted.rpartition(".")[2].lower()
        converted = entry.field.metadata.get("synonyms", {}).get(last, converted)
    _check(converted, entry, name, source)
    *groups, leaf = entry.path.split(".")
    target = config
    for part in groups:
        target = getattr(target, part)
    choices = entry.field.metadata.get("choices")
    if choices and isinstance(converted, str):
        converted = next(c for c in choices if str(c).lower() == converted.lower())
    setattr(target, leaf, converted)


def _check(value: Any, entry: Entry, name: str, source: str) -> None:
    metadata = entry.field.metadata
    choices = metadata.get("choices")
    if value is None:
        return
    if choices and str(value).lower() not in [str(choice).lower() for choice in choices]:
        close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(str(choice) for choice in choices)
        raise UserError(f"{source}: {name}={value} is not one of {known}{hint}")
    for bound, holds, text in _BOUNDS:
        limit = metadata.get(bound)
        if limit is None or isinstance(value, (str, bool)):
            continue
        for number in value if isinstance(value, list) else [value]:
            if not holds(number, limit):
                raise UserError(f"{source}: {name}={number} must be {text} {limit}")


def _convert(value: Any, kind: Any, name: str, source: str) -> Any:
    """Bring a YAML value or a piece of command line to the declared type."""
    problem = UserError(f"{source}: {name}={value!r} is not {_type_name(kind)}")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.strip().lower() in _NONE):
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return _convert(value, rest[0], name, source)
    if origin is list:
        if isinstance(value, str):
            value = _list_of_text(value, problem)
        if not isinstance(value, (list, tuple)):
            value = [value]
        return [_convert(item, arguments[0], name, source) for item in value]
    if kind is bool:
        text = str(value).strip().lower()
        if text in _TRUE | _FALSE:
            return text in _TRUE
        raise problem
    if kind is str:
        if isinstance(value, (dict, list)) or value is None:
            raise problem
        return str(value)
    try:
        if isinstance(value, bool):
            raise problem
        number = float(value)
        if not math.isfinite(number):
            raise UserError(f"{source}: {name}={value} is not a finite number")
        if kind is int:
            if number != int(number):
                raise problem
            return (
                int(value) if isinstance(value, (int, str)) and _is_integer(value) else int(number)
            )
        return number
    except (TypeError, ValueError, OverflowError) as error:
        raise problem from error


def _list_of_text(text: str, problem: UserError) -> Any:
    if text.strip()[:1] != "[":
        return text.split(",")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise problem from error


def _is_integer(value: int | str) -> bool:
    return isinstance(value, int) or re.fullmatch(r"\s*[-+]?\d+\s*", value) is not None


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        rest = [argument for argument in arguments if argument is not type(None)]
        return f"{_type_name(rest[0])} or none"
    if origin is list:
        return f"a list of {_type_name(arguments[0]).split(' ', 1)[1]}s"
    names = {int: "an integer", float: "a number", bool: "a boolean (true or false)", str: "a text"}
    return names.get(kind, str(kind))


def help_text(index: _Index, describe: str) -> str:
    """Every key with type, default, other spellings and meaning."""
    lines = [describe.rstrip(), "", "Keys, as --key=value or in YAML:", ""]
    lines.append("  --config_path (a text, default: see above)")
    lines.append("      a YAML file, or the name of one in the network's configs folder")
    for entry in index.entries:
        metadata = entry.field.metadata
        aliases = entry.names(index.command)[1:]
        aliases += [name for name, path in index.spellings.items() if path == entry.path]
        also = f"; also --{', --'.join(aliases)}" if aliases else ""
        kinds = _type_name(entry.kind).split(" ", 1)[1]
        choices = metadata.get("choices")
        kinds = "|".join(str(c) for c in choices) if choices else kinds
        lines.append(f"  --{entry.path} ({kinds}, default: {_show(entry.default)}{also})")
        lines.append(f"      {metadata.get('meaning', '')}")
    for name, (path, value) in index.switches.items():
        lines.append(f"  --{name} (the same as --{path}={value})")
    return "\n".join(lines).lstrip("\n")


def _show(value: Any) -> str:
    return "none" if value is None else str(value) if value != "" else "empty"


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested plain values."""
    return dataclasses.asdict(config)


def save(config: Any, path: str | os.PathLike[str], command: str) -> None:
    """Write the resolved configuration so that ``--config_path`` of this file re-runs it.

    What to do with earlier results (``resume``, ``overwrite``) belongs to one call and is left
    out.
    """
    program = Path(sys.argv[0]).name
    with atomic_write(path, "w") as stream:
        stream.write(f"# Resolved configuration of a '{command}' run. To run it again:\n")
        stream.write(f"#   python {program} --config_path {path}\n")
        values = _without(to_dict(config), ("resume", "overwrite"))
        yaml.safe_dump(values, stream, sort_keys=False, allow_unicode=True)


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: _without(value, names) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in names
    }
