import html
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from drawn import Shapes
from PIL import Image
from records import SMALL, make_record, picture

from attention_heatmap.drawing.options import DrawingOptions
from attention_heatmap.drawing.outputs import write_records
from attention_heatmap.drawing.summary import draw_summary
from attention_heatmap.record import picture_file

STEM = "combined_attention_visualization_layer1"
WORDS = [" The", " lamp", " (", "300", ",", " 400", ")", "<answer>", "白"]


@pytest.fixture
def record():
    made = make_record(["Based", " <on> & 'it'"], WORDS)
    return replace(made, pictures=(picture_file(picture(colour="green")),))


def written(record, folder, **options):
    paths = write_records(
        [record], record.open_pictures(), [1], "Based", folder, DrawingOptions(frame_size=SMALL, **options)
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    return [path.name for path in paths]


@pytest.mark.parametrize(
    "options, names",
    [
        ({"frames": (2, -1), "summary": True}, ["token2.png", "token9.png", ".mp4", "summary.png"]),
        ({"format": "png", "frames": "3-4"}, ["token3.png", "token4.png"]),
        ({"format": "svg", "frames": 2, "figure": "map"}, ["token2.svg"]),
        ({"format": "svg"}, ["summary.svg"]),
        ({"format": "png", "frames": "all"}, [f"token{n}.png" for n in range(1, 10)]),
    ],
)
def test_files_bear_the_number_that_was_typed(record, tmp_path, options, names):
    assert written(record, tmp_path, **options) == [STEM + ("" if name[0] == "." else "_") + name for name in names]


def test_a_number_without_a_frame_is_told(record, tmp_path, caplog):
    assert written(record, tmp_path, format="png", frames=(2, 40)) == [f"{STEM}_token2.png"]
    assert "[40] have no frame; the frames are of tokens 1 to 9" in caplog.text
    names = written(record, tmp_path / "summary", format="png", frames=40, summary=True)
    assert names == [f"{STEM}_summary.png"], "the summary is not lost"
    with pytest.raises(ValueError, match="the frames are of tokens 1 to 9"):
        written(record, tmp_path / "none", format="png", frames=40)


def test_answers_that_part_are_compared_as_far_as_they_go_together_and_that_is_told(record, tmp_path, caplog):
    other = make_record(["Based", " <on> & 'it'"], [*WORDS[:3], " 7", ")"])
    other = replace(other, pictures=record.pictures)
    paths = write_records(
        [record, other], record.open_pictures(), [1], "Based", tmp_path, DrawingOptions(frame_size=SMALL, format="png")
    )
    assert "the two answers part at token 5: the tokens up to it are compared" in caplog.text
    assert all(path.is_file() for path in paths)


def test_a_second_record_that_lacks_a_plane_is_told_before_anything_is_drawn(tmp_path):
    with pytest.raises(ValueError, match="layer 2 was not recorded"):
        records = [several(1, 2), several(1)]
        write_records(records, records[0].open_pictures(), None, "", tmp_path, DrawingOptions(format="png", frames=1))
    assert not list(tmp_path.iterdir())


def test_sinks_are_hatched_and_cells_have_lines_in_a_file_of_shapes(tmp_path):
    made = make_record(["Based"], WORDS * 3)
    hot = made.images[0].positions[1]
    weights = made.weights * 0.4
    weights[:, :, hot] += 0.6
    record = replace(made, weights=weights, pictures=(picture_file(picture(colour="green")),))
    path = record.figure(9, 1, tmp_path / "out.svg", start_phrase="Based", figure="map", frame_size=SMALL, sinks=True)
    text = path.read_text()
    assert text.count("<polyline") >= 4, "no stripes"
    assert len(re.findall(r"<rect[^>]* stroke=", text)) >= len(made.images[0].positions), "no lines round the cells"
    plain = record.figure(9, 1, tmp_path / "no.svg", start_phrase="Based", figure="map", frame_size=SMALL)
    assert "<polyline" not in plain.read_text()


@pytest.mark.parametrize("figure", ["frame", "map"])
def test_an_svg_keeps_text_as_text_and_the_picture_as_a_picture(record, tmp_path, figure):
    from xml.etree import ElementTree

    path = record.figure(7, 1, tmp_path / "out.svg", start_phrase="Based", figure=figure, frame_size=SMALL)
    root = ElementTree.parse(path).getroot()
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert sum(node.tag.endswith("image") for node in root.iter()) >= 2  # the picture, a colour bar
    assert any("on the picture" in text or "of the attention" in text or "a cell" in text for text in texts)
    assert figure == "map" or any("lamp" in text for text in texts)


def test_a_pdf_holds_the_text(record, tmp_path):
    pytest.importorskip("fpdf")
    path = record.figure(7, 1, tmp_path / "out.pdf", start_phrase="Based", frame_size=SMALL)
    assert path.read_bytes().startswith(b"%PDF") and re.search(rb"/ToUnicode", path.read_bytes())


def test_without_the_library_for_pdf_one_line_says_what_to_install(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fpdf", None)
    with pytest.raises(RuntimeError, match="run pip install fpdf2, or take format svg or png"):
        record.figure(1, 1, tmp_path / "out.pdf", frame_size=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_figure_is_the_frame_that_show_gives_or_the_map_alone(record):
    frame, shown = (call(2, 1, start_phrase="Based", frame_size=SMALL) for call in (record.figure, record.show))
    np.testing.assert_array_equal(np.asarray(frame), np.asarray(shown))
    alone = record.figure(2, 1, start_phrase="Based", frame_size=SMALL, figure="map")
    assert isinstance(alone, Image.Image) and alone.width < frame.width and alone.height < frame.height


def test_another_suffix_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match=r"expected \.png, \.pdf, \.svg"):
        record.figure(1, 1, tmp_path / "out.jpg", frame_size=SMALL)


def test_a_summary_shows_the_answer_and_where_its_words_looked(record):
    options = DrawingOptions(frame_size=SMALL)
    image = draw_summary(record, record.open_pictures(), 1, options)
    pen = draw_summary(record, record.open_pictures(), 1, options, Shapes)
    text = " ".join(values["text"] for kind, values in pen.shapes if kind == "text")
    assert image.size == pen.size and "“lamp”, token 2" in text and "highest cell" in text


def several(*layers):
    record = make_record(["Where"], WORDS, layers=layers)
    return replace(record, pictures=(picture_file(picture()),))


def test_planes_together_have_a_summary_each_and_their_figure_one_scale_that_says_whose(tmp_path):
    how = DrawingOptions(frame_size=SMALL, together="own", format="svg", frames=2, figure="map", summary=True)
    record = several(1, 2)
    paths = write_records([record], record.open_pictures(), None, "", tmp_path, how)
    stem = "combined_attention_visualization"
    assert [path.name for path in paths] == [
        f"{stem}_together_token2.svg", f"{stem}_layer1_summary.svg", f"{stem}_layer2_summary.svg"
    ]  # fmt: skip
    assert "each map's own scale" in html.unescape(paths[0].read_text("utf-8"))


@pytest.mark.parametrize(
    "options, layers, told",
    [
        ({"difference": True}, (1,), "difference changes nothing here: it needs two checkpoints or records"),
        (
            {"together": "own"},
            (1,),
            "together changes nothing here: it needs a video or pictures of several layers or heads of one record",
        ),
        ({"figure": "map"}, (1,), "figure changes nothing here: it needs frames"),
        ({"together": "own", "figure": "map", "frames": 1}, (1, 2), ""),
    ],
)
def test_options_that_change_nothing_are_named(tmp_path, caplog, options, layers, told):
    record = several(*layers)
    how = DrawingOptions(frame_size=SMALL, format="png", **options)
    write_records([record], record.open_pictures(), None, "", tmp_path, how)
    assert [message for message in caplog.messages if "changes nothing" in message] == [told] * bool(told)


def test_a_phrase_that_does_not_occur_is_told_once_for_all_videos_and_again_for_the_next_record(tmp_path, caplog):
    record, how = several(1, 2, 3), DrawingOptions(frame_size=SMALL, format="png", frames=1)
    for times in (1, 2):
        write_records([record], record.open_pictures(), None, "nowhere", tmp_path, how)
        assert caplog.text.count("start_phrase 'nowhere' does not occur") == times
    write_records([record], record.open_pictures(), None, "nowhere", tmp_path, replace(how, format="html", frames=()))
    assert caplog.text.count("start_phrase 'nowhere' does not occur") == 3
