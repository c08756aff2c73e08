"""Twins of the tiny models, which nothing but transformers touches."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest


@pytest.fixture(scope="session")
def twin(tiny_checkpoint):
    """A function from a family's name to its model as transformers loads it, with its own attention or another."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    @cache
    def load(family: str, attention: str | None = None) -> Any:
        folder = tiny_checkpoint(family)
        fits = type(AutoConfig.from_pretrained(folder)) in AutoModelForImageTextToText._model_mapping
        kind = AutoModelForImageTextToText if fits else AutoModelForCausalLM
        return kind.from_pretrained(folder, attn_implementation=attention).eval()

    return load
