"""Every image-text-to-text type of transformers: placed and proven, or refused by one line, never a traceback.

Of another version of transformers, whose types have other defaults, some may not be built.
"""

from __future__ import annotations

import families
import pytest
import torch
import transformers
from geometries import OF_TYPE, PUBLISHED, TYPES, Geometry

torch.set_num_threads(1)
PAGE_IS_OF_THIS_VERSION = f"transformers {transformers.__version__}," in families.DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("label", PUBLISHED)
def test_a_published_geometry_is_placed_and_tokens_change_with_their_pixels_alone(label):
    found = families.outcome(PUBLISHED[label])
    assert found.kind == "placed" and found.looked > 500 and found.wrong == 0


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_placed_and_proven_or_refused_by_one_line(name):
    found = families.outcome(OF_TYPE.get(name, Geometry(name)))
    assert found.kind in ("placed", "refused", "not built") and "\n" not in found.text
    assert found.kind != "not built" or name in families.NOT_BUILT or not PAGE_IS_OF_THIS_VERSION
    assert found.wrong == 0
    assert found.kind != "placed" or found.looked > 200


@pytest.mark.skipif(not PAGE_IS_OF_THIS_VERSION, reason="the page is of another version of transformers")
def test_the_page_of_families_is_what_the_models_say():
    assert families.DOCS.read_text(encoding="utf-8") == families.table(), "run python tests/families.py"
