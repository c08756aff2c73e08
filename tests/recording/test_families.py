"""Every image-text-to-text type of transformers: placed and proven, or refused by one line, never a traceback."""

from __future__ import annotations

import families
import pytest
import torch
import transformers
from geometries import OF_TYPE, PUBLISHED, TYPES, Geometry

torch.set_num_threads(1)


@pytest.mark.parametrize("label", PUBLISHED)
def test_a_published_geometry_is_placed_and_tokens_change_with_their_pixels_alone(label):
    found = families.outcome(PUBLISHED[label])
    assert found.kind == "placed" and found.looked > 500 and found.wrong == 0


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_placed_and_proven_or_refused_by_one_line(name):
    found = families.outcome(OF_TYPE.get(name, Geometry(name)))
    assert found.kind in ("placed", "refused", "not built") and "\n" not in found.text
    assert found.wrong == 0
    assert found.kind != "placed" or found.looked > 300


@pytest.mark.skipif(
    f"transformers {transformers.__version__}," not in families.DOCS.read_text(encoding="utf-8"),
    reason="the page is of another version of transformers",
)
def test_the_page_of_families_is_what_the_models_say():
    assert families.DOCS.read_text(encoding="utf-8") == families.table(), "run python tests/families.py"
