"""Options: each is written once, as a field of a dataclass that knows its default, choices, help and flag.

A wing has a frozen dataclass of options. Checks, the command line and its help are made from the fields.
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

from attention_heatmap.log import one_line

# What an option must be, by the annotation of its field: types, and the words for them. True and False are no numbers.
_KINDS = {
    "int": (Integral, "a whole number"), "int | None": ((Integral, type(None)), "a whole number"),
    "float": (Real, "a number"), "bool": (bool, "True or False"),
    "str | None": ((str, os.PathLike, type(None)), "a text"), "str": (str, "a text"),
    "dict | None": ((dict, type(None)), "a dict of names and values"),
    "str | Colormap": ((str, Callable), "a name or a function"),
}  # fmt: skip
_LARGEST_NUMBER = 2**53  # of an option; beyond it not every whole number is a float
_LONGEST_RANGE = 2**16  # numbers of a range of layers or heads
_READERS = {"int": int, "int | None": int, "float": float, "str": str, "str | None": str}


def option(
    default: Any, help: str, *, group: str, choices: tuple[str, ...] = (), flag: dict | None = None, shown: str = ""
) -> Any:
    """A field of a class of options.

    group: the heading that the flag stands under. choices: the only values. flag: more for argparse's add_argument.
    shown: the default in words, where it is not typed as it stands.
    """
    facts = {"help": help, "group": group, "choices": choices, "flag": flag or {}, "shown": shown}
    return dataclasses.field(default=default, metadata=facts)


def defaults_of(kind: type) -> dict[str, Any]:
    """The defaults of a class's options by name."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def names_of(kind: type) -> list[str]:
    """The names of a class's options."""
    return list(defaults_of(kind))


def are_whole(values: object) -> bool:
    """Whether values are there, all of them whole numbers, of Python's or NumPy's; True and False are none."""
    if isinstance(values, range):  # all are, however many
        return True
    return isinstance(values, Iterable) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in values)


def number_or_text(text: str) -> int | str:
    """A number as one, any other text as it stands: how flags are read that take both."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def spans(text: str) -> list[tuple[int, int]] | None:
    """(first, last) of each number or range of a list such as "3", "0-7" or "0,5-7"; None for another text."""
    parts = [re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part) for part in text.split(",")]
    found = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    return found if all(parts) and all(first <= last for first, last in found) else None


def expand(given: Any, name: str) -> list:
    """What names layers or heads, as a flat list: numbers, tuples for a mean such as "1+3", and words as they stand.

    given: one, or several, of numbers, tuples and texts such as "7", "-1", "0-7", "0,5", "1+3", "all".
    Raises ValueError for a range that is far too long.
    """
    found: list = []
    if isinstance(given, range) and len(given) > _LONGEST_RANGE:
        raise ValueError(f"{name} {given!r} is out of range: no model has so many")
    given = given.tolist() if hasattr(given, "tolist") else given  # arrays are neither equal to a text nor not
    for one in list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
        if not isinstance(one, str):
            found.append(one)
        elif re.fullmatch(r"-?[0-9]{1,9}", one):
            found.append(int(one))
        elif re.fullmatch(r"[0-9]{1,9}(?:\+[0-9]{1,9})+", one):
            found.append(tuple(int(part) for part in one.split("+")))
        elif (parsed := spans(one)) is not None:
            if sum(last - first for first, last in parsed) > _LONGEST_RANGE:
                raise ValueError(f"{name} {one[:200]!r} is out of range: no model has so many")
            found += [number for first, last in parsed for number in range(first, last + 1)]
        else:
            found.append(one)
    return found


def check_options(options: Any) -> None:
    """Raises ValueError for fields that are not of the kind that they are annotated with, or none of their choices.

    Numbers become Python's own.
    """
    for field in dataclasses.fields(options):
        value, (kind, expected) = getattr(options, field.name), _KINDS.get(field.type, (object, ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise ValueError(f"{field.name} is {one_line(repr(value))}; expected {expected}")
        if kind is not object and isinstance(value, Real) and not isinstance(value, bool):
            if not abs(value) < _LARGEST_NUMBER:
                shown = one_line(value)[:200]
                raise ValueError(f"{field.name} is {shown}; expected {expected} below {_LARGEST_NUMBER}")
            # As Python's own: those of NumPy make texts of other kinds, and no JSON.
            object.__setattr__(options, field.name, int(value) if isinstance(value, Integral) else float(value))
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{field.name} is {one_line(repr(value))}; expected {' or '.join(map(repr, choices))}")


def pick(given: dict, *kinds: type) -> list[dict]:
    """Options given by name, parted between classes. Raises ValueError for a name that none of them has."""
    known = [names_of(kind) for kind in kinds]
    every = sorted({name for names in known for name in names})
    for name in given:
        if name not in every:
            near = difflib.get_close_matches(name, [*every, "layer_idx"], 1)
            advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(every)}"
            raise ValueError(f"there is no option {name!r}; {advice}")
    return [{name: given[name] for name in given if name in names} for names in known]


def shows_options(*kinds: type) -> Callable:
    """A function whose `**options` are those of some classes: its signature, for help and completion, lists them."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        more = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for kind in kinds for field in dataclasses.fields(kind) if field.name not in signature.parameters
        ]  # fmt: skip
        function.__signature__ = signature.replace(parameters=[*own, *more])
        return function

    return decorate


def add_flags(parser: argparse.ArgumentParser, groups: dict[str, Any], kind: type) -> None:
    """A flag for each option of a class, under the heading that the option names.

    groups: the headings that are there already, by name; new ones are added.
    """
    for field in dataclasses.fields(kind):
        facts, default = field.metadata, field.default
        if facts["group"] not in groups:
            groups[facts["group"]] = parser.add_argument_group(facts["group"])
        shown = facts["shown"] or ("" if default in (None, ()) or default is False else str(default))
        help = facts["help"].replace("%", "%%") + (f" (default: {shown})" if shown else "")
        flag = {"action": "store_true"} if field.type == "bool" else {"type": _READERS.get(field.type)}
        flag |= {"choices": facts["choices"]} if facts["choices"] else {}
        groups[facts["group"]].add_argument(f"--{field.name}", default=default, help=help, **(flag | facts["flag"]))
