"""The model's wing. torch and transformers come with their first use, so that what needs no model answers at once."""

from importlib import import_module
from typing import Any


class _Later:
    """A module that is imported when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import_module("torch")  # first: without it transformers says at length what it cannot do
        return getattr(import_module(self._name), name)


torch: Any = _Later("torch")
transformers: Any = _Later("transformers")
