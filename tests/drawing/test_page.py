"""The page: what it shows is what the record holds, whatever is in its texts, and it asks nothing of any network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from pages import Shown, browser, hot_weights, record_of

from attention_heatmap.drawing.colour import CELL_ALPHA, COLORMAPS, opacity, scale_ends, scaled
from attention_heatmap.drawing.image_panel import IMAGE_SCALE_QUANTILE
from attention_heatmap.drawing.page import LOG_RANGE, _quantised, notebook_html, page_html, write_page
from attention_heatmap.drawing.page_index import write_index
from attention_heatmap.maps import image_shares, shown_rows

WORDS = [
    "A",
    " grey",
    " cat",
    " sits",
    " on",
    " a",
    " mat",
    " (",
    "500",
    ",",
    " 500",
    ").",
    " Then",
    " it",
    " left",
    ".",
]
HOSTILE = ["</script>", "<img src=x onerror=alert(1)>", "<!--", "\u202eevil", "]]>", "&lt;b&gt;", "{{data}}", "'\"`"]
STEPS = {2: 5, 6: 11, 13: 5}  # step: the cell that it looks at
WINDOW = {"width": 1200, "height": 800}
LOOKS = "#tokens={}&scale=frame"


@pytest.fixture(scope="module")
def chrome():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def window(chrome):
    return chrome.new_context(viewport=WINDOW)


@pytest.fixture(scope="module")
def record():
    return hot_weights(record_of(WORDS), STEPS)


@pytest.fixture
def show(chrome, window, tmp_path):
    """Opens a page of records; at the end the console must be empty and nothing asked."""
    opened = []

    def open_page(records, hash="", **more):
        path = write_page(records, tmp_path / f"{len(opened)}.html")
        context = chrome.new_context(viewport=WINDOW, **more) if more else window
        opened.append(Shown(context.new_page(), path, hash))
        return opened[-1]

    yield open_page
    for shown in opened:
        shown.close()


# ---- the file -------------------------------------------------------------------------------------------------------


def test_weights_are_kept_to_a_fiftieth(record):
    rows = record.rows(0)
    levels, peaks = _quantised(record, 0)
    group = np.zeros(rows.shape[1], int)
    group[record.images[0].positions] = 1
    back = np.where(levels, np.exp((levels - 255.0) / 254 * LOG_RANGE), 0) * peaks[:, group]
    assert (np.abs(back - rows) <= 0.022 * rows + peaks[:, group] / 65536).all()


def test_only_our_own_script_and_style_may_run(record):
    page = page_html(record)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for kind, tag in (("style", "<style>"), ("script", '<script type="module">')):
        body = page.partition(tag)[2].partition(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_hostile_text_is_no_markup_in_the_file():
    page = page_html(record_of(HOSTILE))
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)[1]
    texts = [text for _, text, _ in json.loads(facts)["pieces"]]
    assert "".join(texts[-len(HOSTILE) :]) == "".join(HOSTILE).replace("\u202e", "[U+202E]")
    assert "<" not in facts and "\u202e" not in page and "<img" not in page


def test_a_thousand_tokens_over_five_thousand_positions_are_small(tmp_path):
    """The same in a fifth of the size both ways, one plane of four: a hundredth of the weights, as irregular as any."""
    T, S, small = 200, 1000, record_of(WORDS, layers=(0,))
    weights = np.exp(2 * np.random.default_rng(0).normal(size=(T, 1, S))).astype(np.float32)
    weights[:, 0] *= np.arange(S) < S - T + np.arange(T)[:, None]
    weights /= weights.sum(axis=2, keepdims=True)
    big = dataclasses.replace(
        small, tokens=("x",) * S, token_ids=np.arange(S), prompt_length=S - T, weights=weights
    )  # fmt: skip
    even = dataclasses.replace(big, weights=np.ones_like(weights) / S)
    sizes = [write_page(record, tmp_path / "page.html").stat().st_size for record in (even, big)]
    assert 100 * (sizes[1] - sizes[0]) < 24.5e6 and sizes[0] < 1.5e5


def test_records_of_other_tokens_are_refused(record):
    with pytest.raises(ValueError, match="not of the same tokens"):
        page_html([record, record_of(WORDS[:-1])])
    with pytest.raises(ValueError, match="planes"):
        page_html([record, record_of(WORDS, layers=(0,))])


def test_a_notebook_shows_the_page_or_a_light_summary(record, monkeypatch):
    assert "<iframe" in notebook_html(record) and "srcdoc=" in record._repr_html_()
    monkeypatch.setattr("attention_heatmap.drawing.page.LARGEST_NOTEBOOK_PAGE", 1000)
    assert notebook_html(record).startswith("<img")


# ---- word to place --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_hot_cell_has_the_maps_last_colour(show, record):
    shown = show(record, LOOKS.format(3))
    high = np.round(COLORMAPS["red_to_green"](np.array([1.0])))[0]
    assert np.abs(np.array(shown.tint(5)[:3]) - high).max() <= 3
    assert shown.tint(5)[3] > shown.tint(0)[3]
    assert shown.text("which") == "token 3 of 16"
    assert f"{image_shares(record, 1)[2]:.1%} on the picture" == shown.text("looked")
    weight = record.rows(1)[2, record.images[0].positions[5]]
    read = float(re.search(r"highest cell: ([\d.]+)% at column 2, row 2", shown.text("readout"))[1])
    assert read == pytest.approx(100 * weight, rel=0.03)


@pytest.mark.browser
def test_on_the_logarithmic_scale_cells_have_the_videos_colours(show, record):
    shown = show(record, "#tokens=3&scale=log")
    cells = record.rows(1)[:, record.images[0].positions]
    (end,) = scale_ends(cells[None], IMAGE_SCALE_QUANTILE, "log")
    for cell in (5, 0, 7):
        (level,) = scaled(cells[2, [cell]] / end, "log", 1)
        (expected,) = COLORMAPS["red_to_green"](np.array([level]))
        assert np.abs(np.array(shown.tint(cell)[:3]) - expected).max() <= 12  # levels of weights and of colours
        assert abs(shown.tint(cell)[3] / 255 - opacity(level, CELL_ALPHA)) < 0.03
    assert "or less" in shown.text("cell-legend")


@pytest.mark.browser
def test_hovering_shows_and_clicking_pins(show, record):
    shown = show(record, LOOKS.format(1))
    shown.token(6).hover()
    shown.settle()
    assert shown.text("which") == "token 7 of 16" and shown.tint(11)[1] > shown.tint(11)[0]
    shown.page.mouse.move(600, 5)
    shown.settle()
    assert shown.text("which") == "token 1 of 16"
    shown.token(6).click()
    shown.page.mouse.move(600, 5)
    shown.settle()
    assert shown.text("which") == "token 7 of 16"
    assert shown.token(6).get_attribute("aria-selected") == "true"


@pytest.mark.browser
def test_keys_step_play_and_end(show, record):
    shown = show(record, LOOKS.format(1))
    for key, token in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 16), ("Home", 1)):
        shown.page.keyboard.press(key)
        shown.settle()
        assert shown.text("which") == f"token {token} of 16"
    shown.page.locator("#speed").select_option("16")
    shown.page.locator("#answer").focus()
    shown.page.keyboard.press("Space")
    shown.until("document.getElementById('which').textContent !== 'token 1 of 16'")
    shown.page.keyboard.press("Space")
    assert shown.page.locator("#play").get_attribute("aria-pressed") == "false"
    assert shown.page.locator("#slider").get_attribute("aria-valuetext")


@pytest.mark.browser
def test_dragging_or_finding_takes_the_mean(show, record):
    shown = show(record, LOOKS.format(1))
    shown.token(2).hover()
    shown.page.mouse.down()
    shown.token(6).hover()
    shown.page.mouse.up()
    shown.page.mouse.move(600, 5)
    shown.settle()
    assert shown.text("which").startswith("5 tokens, 3\u20137")
    x, y = shown.cell(11)
    shown.page.mouse.move(x, y)
    shown.settle()
    mean = 100 * record.rows(1)[2:7, record.images[0].positions[11]].mean()
    assert float(re.search(r"column 4, row 3: ([\d.]+)%", shown.text("readout"))[1]) == pytest.approx(mean, rel=0.03)
    shown.page.locator("#search").fill("cat sits")
    shown.settle()
    assert shown.text("which").startswith("2 tokens, 3\u20134")


# ---- place to word --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_place_tints_the_words_that_looked_there(show, record):
    shown = show(record, LOOKS.format(1))
    x, y = shown.cell(5)
    shown.page.mouse.move(x, y)
    shown.settle()
    looked = record.rows(1)[:, record.images[0].positions[5]]
    assert set(np.argsort(-looked)[:2]) == {2, 13}
    red, green, _ = map(int, re.findall(r"\d+", shown.ground(int(looked.argmax())))[:3])
    assert green > red  # the map's high end
    assert shown.ground(2) != shown.ground(4)
    word, read = re.search(r"row 2: (\w+) ([\d.]+)%", shown.text("readout").splitlines()[-1]).groups()
    assert word in ("cat", "it") and float(read) == pytest.approx(100 * looked.max(), rel=0.03)


@pytest.mark.browser
def test_a_rectangle_is_the_sum_of_its_cells(show, record):
    shown = show(record, LOOKS.format(1))
    shown.page.mouse.move(*shown.cell(5))
    shown.page.mouse.down()
    shown.page.mouse.move(*shown.cell(10), steps=3)
    shown.page.mouse.up()
    shown.page.mouse.move(600, 5)
    shown.settle()
    cells = record.images[0].positions[[5, 6, 9, 10]]
    looked = 100 * record.rows(1)[:, cells].sum(axis=1)
    assert "4 cells" in shown.text("readout")
    found = re.search(r"token 3, cat, ([\d.]+)%", shown.page.locator("#readout").inner_html())
    assert float(found[1]) == pytest.approx(looked[2], rel=0.03)
    assert "place=1_" in shown.until("location.hash.includes('place=') && location.hash")
    shown.page.keyboard.press("Escape")
    shown.settle()
    assert "looked most" not in shown.text("readout")


@pytest.mark.browser
def test_a_picture_is_walked_by_keys(show, record):
    shown = show(record, LOOKS.format(3))
    shown.page.locator(".over").focus()
    shown.page.keyboard.press("ArrowRight")  # to the hottest cell first
    shown.settle()
    assert shown.text("readout").startswith("column 2, row 2")
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("Enter")
    shown.settle()
    assert shown.text("readout").startswith("column 2, row 3") and "let go" in shown.text("readout")


# ---- planes, looks, addresses ---------------------------------------------------------------------------------------


@pytest.mark.browser
def test_planes_switch_by_menu_keys_and_strip(show, record):
    other = dataclasses.replace(record, weights=record.weights.copy())
    other.weights[2, 0] = np.roll(other.weights[2, 0], 1)  # layer 0 looks one cell further
    shown = show(other, LOOKS.format(3))
    assert "layer 1" in shown.text("plane-title") and shown.page.locator("#strip canvas").count() == 2
    shown.page.keyboard.press("j")
    shown.until("document.getElementById('plane-title').textContent.includes('layer 0')")
    shown.settle()
    assert shown.text("readout").splitlines()[0].endswith("column 3, row 2")
    shown.page.locator("#layer").select_option("1")
    shown.until("document.getElementById('plane-title').textContent.includes('layer 1')")
    shown.page.locator("#plane-0").click()
    shown.until("location.hash.includes('plane=layer0')")


@pytest.mark.browser
def test_two_records_stand_side_by_side_or_as_their_difference(show, record):
    other = hot_weights(record_of(WORDS), {2: 0})
    shown = show([record, other], LOOKS.format(3) + "&show=both")
    assert shown.page.locator(".heat").count() == 2
    assert shown.tint(5)[1] > shown.tint(5)[0] and shown.tint(0, 1)[1] > shown.tint(0, 1)[0]
    for name, own, cell, place in (
        ("record 1", record, 5, "column 2, row 2"),
        ("record 2", other, 0, "column 1, row 1"),
    ):
        (read,) = re.findall(rf"{name} highest cell: ([\d.]+)% at {place}", shown.text("readout"))
        weight = own.rows(1)[2, own.images[0].positions[cell]]
        assert float(read) == pytest.approx(100 * weight, rel=0.03)
    shown.page.locator("#show").select_option("difference")
    shown.page.wait_for_selector(".heat >> nth=1", state="detached")
    shown.settle()
    more, less = shown.tint(5), shown.tint(0)
    assert more[0] > more[1] and less[1] > less[0]  # purple where the first has more, green where the second has
    shown.page.mouse.move(*shown.cell(5))
    shown.settle()
    gone = 100 * (record.rows(1) - other.rows(1))[2, record.images[0].positions[5]]
    assert float(re.search(r"\u2212([\d.]+)%", shown.text("readout"))[1]) == pytest.approx(gone, rel=0.05)


@pytest.mark.browser
def test_mutings_are_those_of_the_video(show, record):
    shown = show(record, LOOKS.format(3) + "&baseline=median&smooth=1")
    rows = shown_rows(record, 1, "median", False, 1.0).rows[2, record.images[0].positions]
    shown.page.mouse.move(*shown.cell(6))
    shown.settle()
    assert float(re.search(r"row 2: ([\d.]+)%", shown.text("readout"))[1]) == pytest.approx(100 * rows[6], rel=0.05)
    assert "minus their median" in shown.text("notes")


@pytest.mark.browser
def test_the_address_leads_back_to_the_view(show, record):
    shown = show(
        record_of(WORDS, pictures=2), LOOKS.format("3-5_9") + "&place=2_3750_5000_6250_5000&theme=dark&opacity=0.5"
    )
    assert shown.text("which") == "4 tokens, 3\u20135, 9" and "2 cells" in shown.text("readout")
    assert shown.page.evaluate("getComputedStyle(document.querySelector('.heat')).opacity") == "0.5"
    ink = shown.page.evaluate("getComputedStyle(document.documentElement).color")
    assert ink == "rgb(232, 234, 238)"
    shown.page.keyboard.press("Home")
    hash = shown.until("location.hash.includes('tokens=1&') && location.hash")
    assert "place=2_3750_5000_6250_5000" in hash and "theme=dark" in hash


@pytest.mark.browser
def test_hostile_text_stays_text(show):
    shown = show(record_of(HOSTILE), "#tokens=2&show=<b>&plane=__proto__&place=9_x&colours=none")
    assert [shown.token(n).text_content() for n in range(len(HOSTILE))] == [
        text.replace("\u202e", "[U+202E]") for text in HOSTILE
    ]
    assert shown.page.locator("#answer img, #answer b").count() == 0
    assert shown.page.locator("#chip").inner_text() == HOSTILE[1]


@pytest.mark.browser
def test_view_and_map_are_taken_away(show, record):
    shown = show(record, LOOKS.format(3), permissions=["clipboard-read", "clipboard-write"])
    with shown.page.expect_download() as saved:
        shown.page.locator("#save").click()
    assert saved.value.suggested_filename.endswith(".png")
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
    shown.page.locator("#copy").click()
    shown.page.wait_for_selector("#toast.seen")
    lines = shown.page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0] == 'image,left,top,right,bottom,"weight"' and len(lines) == 1 + 12
    weights = [float(line.rpartition(",")[2]) for line in lines[1:]]
    np.testing.assert_allclose(weights, record.rows(1)[2, record.images[0].positions], rtol=0.03)


@pytest.mark.browser
@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (390, 844), (700, 500), (844, 390)])
def test_nothing_is_cut_off_at_any_size(chrome, record, tmp_path, size):
    path = write_page([record, record], tmp_path / "page.html")
    context = chrome.new_context(viewport=dict(zip(("width", "height"), size)))
    shown = Shown(context.new_page(), path, "#tokens=3&show=both")
    wide = shown.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    boxes = [
        shown.page.locator(f"{name} >> nth=0").bounding_box() for name in (".stack", "#answer", "#slider", "#readout")
    ]
    assert all(box["width"] > 50 and box["height"] > 15 for box in boxes)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= size[0] + 1 for box in boxes)
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[3]["y"] + 1  # the picture ends above what is said of it
    places = shown.page.evaluate(
        "[...document.querySelectorAll('.bar, .text, .pictures, footer, .pictures > *, .text > *')]"
        ".map(e => [e, e.getBoundingClientRect()]).filter(([e, r]) => r.width > 1 && r.height > 1)"
        ".map(([e, r]) => [e.parentElement.className, r.left, r.top, r.right, r.bottom])"
    )
    for n, (parent, *a) in enumerate(places):
        for other, *b in places[:n]:
            overlap = min(a[2], b[2]) - max(a[0], b[0]) > 1.5 and min(a[3], b[3]) - max(a[1], b[1]) > 1.5
            assert not (overlap and parent == other), (parent, a, b)
    shown.close()


@pytest.mark.browser
def test_the_page_works_inside_a_notebooks_frame(chrome, record, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><body>{notebook_html(record)}", "utf-8")
    page = chrome.new_page()
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for(timeout=10_000)
    frame.locator("#answer > span").nth(6).click()
    assert frame.locator("#which").inner_text() == "token 7 of 16"
    page.close()


# ---- the index ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(record, tmp_path):
    write_page(record, tmp_path / "sample_0000" / "page.html")
    share = {"image_share_response_layer1": 0.25}
    right = {"sample": 0, "id": "a", "response": "cat", "answer": "cat", "correct": 1, **share, "error": "",
             "files": "sample_0000/page.html;sample_0000/record.safetensors"}  # fmt: skip
    return [right, {"sample": 1, "id": None, "response": HOSTILE[1], "answer": "</td>", "correct": 0, **share,
                    "files": "javascript:alert(1).html", "error": "<b>"}]  # fmt: skip


def test_the_index_leads_to_the_pages(rows, tmp_path):
    page = write_index(rows, tmp_path / "index.html").read_text("utf-8")
    assert '<a href="sample_0000/page.html">' in page and "data:image/jpeg;base64," in page
    assert "25.0%" in page and "2 samples, 1 of 2 right" in page
    assert "<img src=x" not in page and 'href="javascript:' not in page and "<b>" not in page


@pytest.mark.browser
def test_the_index_is_found_in_and_sorted(chrome, rows, tmp_path):
    path = write_index(rows, tmp_path / "index.html")
    page = chrome.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    page.locator("th button").first.click()
    page.locator("th button").first.click()
    assert page.locator("tbody tr").first.locator("th").inner_text() == "1"
    page.locator("#show").select_option("right")
    assert page.locator("tbody tr:visible").count() == 1
    page.locator("tbody tr:visible a").click()
    page.wait_for_selector("body[data-ready]")
    page.close()
    assert not said
