"""What a configuration says of its layers and heads."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig, GPT2Config

from attention_heatmap.recording.layers import (
    attention_layers,
    check_head,
    cross_layers,
    layer_kinds,
    layer_values,
    resolve_heads,
    resolve_layer,
    resolve_layers,
    text_config,
    tp_size,
    warn_of_blind_layers,
)


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    """A function from a family's name to its configuration; qwen2_vl's by default."""
    return lambda family="qwen2_vl": AutoConfig.from_pretrained(tiny_checkpoint(family))


def test_a_configuration_without_a_text_model_is_refused():
    bare = SimpleNamespace(model_type="vision", get_text_config=lambda: SimpleNamespace(num_hidden_layers=3))
    with pytest.raises(ValueError, match="model type 'vision' has no text model whose num_attention_heads is known"):
        text_config(bare)
    assert text_config(GPT2Config(n_layer=2)).num_hidden_layers == 2


def test_only_the_default_layer_falls_back_and_says_so(config, caplog):
    assert (
        resolve_layer(config(), 20) == 2 and "has 3 layers; layer 2 is shown in place of the default 20" in caplog.text
    )
    assert [resolve_layer(config(), layer) for layer in (0, 2, -1, -3, np.int64(1))] == [0, 2, 2, 0, 1]
    for layer in (3, 19, 21, -4):
        with pytest.raises(ValueError, match=rf"layer_idx {layer} is out of range: the model has 3 layers \(0\.\.2"):
            resolve_layer(config(), layer)


@pytest.mark.parametrize("layer", [True, 7.0, "7", None])
def test_a_layer_that_is_no_whole_number_is_refused(config, layer):
    with pytest.raises(ValueError, match="expected a whole number"):
        resolve_layer(config(), layer)


def test_layers_without_attention_are_refused_by_name_and_the_default_gives_way(config, caplog):
    mixed = config("qwen3_5")
    assert attention_layers(mixed) == [1, 2] and layer_kinds(config()) != layer_kinds(mixed)
    with pytest.raises(ValueError, match=r"layer 0 is a linear_attention layer without attention.*\[1, 2\]"):
        resolve_layer(mixed, 0)
    assert resolve_layer(mixed, 20) == 2 and "of which 2 show attention to pictures" in caplog.text
    crossing = config("mllama")
    assert cross_layers(crossing) == [1, 3] and cross_layers(config()) == []
    assert resolve_layer(crossing, 20) == 3  # the nearest that crosses


def test_a_number_may_differ_from_layer_to_layer():
    layers = [SimpleNamespace(width=[2, 5]), SimpleNamespace(width=3), SimpleNamespace(width=0), SimpleNamespace()]
    assert layer_values(SimpleNamespace(per_layer_config=layers), "width", 7).tolist() == [5, 3, 7, 7]
    assert layer_values(SimpleNamespace(num_hidden_layers=2, width=4), "width", 7).tolist() == [4, 4]


@pytest.mark.parametrize("ranks, processes", [(None, 1), (1, 1), (2, 2)])
def test_a_model_says_how_many_processes_share_it(ranks, processes):
    assert tp_size(SimpleNamespace(tp_size=ranks)) == processes


@pytest.mark.parametrize("head", [4, -5, 1.5, "x", True, None, [], ()])
def test_a_head_that_is_none_names_the_number_of_heads(head):
    with pytest.raises(ValueError, match="cannot be taken: the layer has 4 heads"):
        check_head(head, 4)


@pytest.mark.parametrize("heads", [[0, 4], ["mean", 1], [1, "auto"], [[1], 2]])
def test_several_heads_of_which_one_is_none_are_refused(heads):
    with pytest.raises(ValueError, match="cannot be taken"):
        check_head(heads, 4)


@pytest.mark.parametrize(
    "head, taken",
    [
        ("mean", "mean"),
        ("auto", "auto"),
        (-1, 3),
        (np.int64(2), 2),
        ((1, 3), (1, 3)),
        ([0, -1, 3], (0, 3)),
        ((2, 2), 2),
    ],
)
def test_a_head_counts_from_0_and_each_once(head, taken):
    assert check_head(head, 4) == taken and type(check_head(head, 4)) is type(taken)


def test_a_layer_that_cannot_see_all_of_the_picture_is_told(config, caplog):
    warn_of_blind_layers(config("gemma3"), [0, 1], 30)
    assert "layer 0 sees the last 24 positions only" in caplog.text and "30 back" in caplog.text
    assert "layer 1" not in caplog.text
    caplog.clear()
    warn_of_blind_layers(config("gemma3"), [0], 24)
    warn_of_blind_layers(config(), [0], 10**6)
    assert not caplog.text
    warn_of_blind_layers(config("mllama"), [1, 2], 30)
    assert caplog.text.count("does not look at pictures") == 1
    assert "layer 2 does not look at pictures; layers [1, 3] do" in caplog.text


# ------------------------------------------------------------------------------------- layers and heads by name


@pytest.mark.parametrize(
    "given, layers",
    [(1, (1,)), (-1, (2,)), ([2, -1, 0], (2, 0)), ("0-1", (0, 1)), ("all", (0, 1, 2)), ("auto", ()), ("0,2", (0, 2)),
     (np.array([0, 2]), (0, 2)), ([1, "0-1"], (1, 0))],
)  # fmt: skip
def test_layers_are_named_one_by_one_by_ranges_or_all(config, given, layers):
    assert resolve_layers(config(), given) == layers


@pytest.mark.parametrize(
    "given, message",
    [
        (["auto", 1], "layer_idx is 'auto'; expected auto alone"),
        ("last", "expected a whole number, a range such as 0-7, all, or auto"),
        ("1+2", r"layer_idx is \(1, 2\); expected a whole number"),
        ([], "no layer was given; expected one or more"),
        (7, "layer_idx 7 is out of range"),
    ],
)
def test_layers_that_are_none_are_refused(config, given, message):
    with pytest.raises(ValueError, match=message):
        resolve_layers(config(), given)


@pytest.mark.parametrize(
    "given, heads",
    [("mean", ("mean",)), ("each", (0, 1, 2, 3)), (-1, (3,)), ("0-2", (0, 1, 2)), ("1+3", ((1, 3),)),
     ((1, 3), ((1, 3),)), (["max", 2, "each"], ("max", 2, 0, 1, 3)), ("auto", ("auto",)), ([[0, 1], "1"], ((0, 1), 1))],
)  # fmt: skip
def test_heads_are_reduced_or_named_each_once(config, given, heads):
    assert resolve_heads(config(), given) == heads


@pytest.mark.parametrize(
    "given, message",
    [(["auto", 1], "expected numbers, or auto alone"), ([], "no head was given"), ("0-9", "the layer has 4 heads")],
)
def test_heads_that_are_none_are_refused(config, given, message):
    with pytest.raises(ValueError, match=message):
        resolve_heads(config(), given)


@pytest.mark.parametrize("resolve", [resolve_layers, resolve_heads])
def test_what_names_no_layer_or_head_is_refused_in_one_line(resolve):
    config = SimpleNamespace(num_hidden_layers=3, num_attention_heads=4, layer_types=None)
    config.get_text_config = lambda: config
    nasty = 10**400, np.float32("nan"), np.zeros((2, 2)), object, len, 1j, {}, None, [["x"]], np.array([1.5]), [], ""
    for value in nasty:
        with pytest.raises(ValueError) as error:
            resolve(config, value)
        assert len(str(error.value)) < 500 and "ambiguous" not in str(error.value)
    with pytest.raises(ValueError, match="out of range"):
        resolve_layers(config, range(10**12))
    assert resolve_layers(config, np.array([0, 2])) == (0, 2)
