"""From a problem and its pictures to the model's inputs, and from tokens back to text."""

from types import SimpleNamespace

import pytest
import torch
from records import picture
from reference import PICTURES, inputs_of, with_response

from attention_heatmap.recording.prompt import (
    append_response,
    build_inputs,
    decode_tokens,
    forced_pass,
    input_device,
    prompt_text,
)

RESPONSE = [65, 66, 67, 68]


def test_the_problem_stands_in_the_prompt_where_the_template_says(tiny):
    inputs = build_inputs(tiny.processor, "Go {there}.", [picture()], "Q: {Question} A:")
    text = tiny.processor.tokenizer.decode(inputs["input_ids"][0])
    assert "Q: Go {there}. A:<|im_end|>\n<|im_start|>assistant" in text


def test_inputs_are_those_of_the_processors_own_template(tiny):
    expected = inputs_of(tiny, "Where is it?")
    found = build_inputs(tiny.processor, "Where is it?", PICTURES, "{Question}")
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_a_processor_cannot_take_is_one_clear_line(tiny):
    tiny_one = SimpleNamespace(
        chat_template=None, tokenizer=tiny.processor.tokenizer, image_token="<|image_pad|>",
        apply_chat_template=tiny.processor.apply_chat_template,
    )  # fmt: skip
    tiny_one.tokenizer = SimpleNamespace(chat_template=tiny.processor.chat_template, bos_token=None)
    with pytest.raises(ValueError, match=r"SimpleNamespace cannot take the problem and its 1 picture\(s\): .*callable"):
        build_inputs(tiny_one, "Go.", [picture()], "{Question}")


def test_a_checkpoint_without_chat_template_is_refused_unless_its_family_has_none(tiny_visualizer):
    processor = SimpleNamespace(chat_template=None, tokenizer=SimpleNamespace(chat_template=None))
    with pytest.raises(ValueError, match=r"SimpleNamespace has no chat template; add chat_template\.jinja"):
        build_inputs(processor, "Where?", [picture()], "{Question}")
    visualizer = tiny_visualizer("paligemma")
    inputs = build_inputs(visualizer.processor, "Where?", PICTURES, "{Question}")
    text = visualizer.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<image>" * 32 + "<bos>Where?\n" and "labels" not in inputs


def test_a_chat_template_that_is_broken_is_told():
    from jinja2 import TemplateError

    def breaks(*_, **__):
        raise TemplateError("no\nend")

    processor = SimpleNamespace(chat_template="x", tokenizer=SimpleNamespace(), apply_chat_template=breaks)
    with pytest.raises(ValueError, match=r"^the checkpoint's chat template cannot be used: no end; mend it$"):
        prompt_text(processor, [])


def test_a_template_that_writes_the_first_token_leaves_none_to_the_tokenizer():
    class Processor:
        chat_template = "{{ messages }}"
        tokenizer = SimpleNamespace(bos_token="<s>", chat_template=None)
        text = "<s>Where?"

        def apply_chat_template(self, messages, **_):
            return self.text

        def __call__(self, **kwargs):
            self.called = kwargs
            return {}

    processor = Processor()
    build_inputs(processor, "Where?", [], "{Question}")
    assert processor.called["add_special_tokens"] is False
    processor.text = "Where?"
    build_inputs(processor, "Where?", [], "{Question}")
    assert "add_special_tokens" not in processor.called


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "paligemma", "mllama", "llava"])
def test_a_response_goes_on_where_the_prompt_ends(tiny_visualizer, family):
    """The reference is written by hand, for each kind of input; nothing else changes."""
    inputs = inputs_of(tiny_visualizer(family))
    expected, found = with_response(inputs, [*RESPONSE, 0]), append_response(inputs, RESPONSE)
    assert set(found) == set(inputs)
    for key, value in expected.items():
        assert torch.equal(found[key], value) and found[key].dtype == inputs[key].dtype, key
    assert inputs["input_ids"].shape[1] + 4 == found["input_ids"].shape[1]


def test_a_forced_pass_is_a_plain_one_and_leaves_the_last_token_out(tiny, twin):
    inputs = inputs_of(tiny)
    with torch.inference_mode():
        plain = twin("qwen2_vl")(**with_response(inputs, RESPONSE)).logits
    output = forced_pass(tiny.model, inputs, RESPONSE, logits_to_keep=slice(-3, None))
    torch.testing.assert_close(output.logits, plain[:, -3:], atol=1e-4, rtol=1e-4)
    assert not output.logits.requires_grad and output.past_key_values is None


def test_inputs_go_to_the_model_or_to_where_accelerate_runs_its_first_part(tiny):
    assert input_device(tiny.model).type == "cpu"
    embeddings = SimpleNamespace(_hf_hook=SimpleNamespace(execution_device="cuda:1"))
    held_elsewhere = SimpleNamespace(device=torch.device("meta"), get_input_embeddings=lambda: embeddings)
    assert input_device(held_elsewhere) == torch.device("cuda:1")


@pytest.mark.parametrize(
    "text", ["A naïve café", "路 🗺️→ 龘", "  two  spaces\n\n", "<|im_end|>x", "\ufffd\ufffd a \ufffd"]
)
def test_tokens_joined_are_the_decoded_text(tiny, text):
    tokenizer = tiny.processor.tokenizer
    ids = tokenizer.encode(text)
    pieces = decode_tokens(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text


def test_a_character_of_several_tokens_comes_whole_with_the_last(tiny):
    pieces = decode_tokens(tiny.processor.tokenizer, tiny.processor.tokenizer.encode("a路b"))
    assert pieces == ("a", "", "", "路", "b")


def test_what_never_becomes_a_character_is_not_waited_for(tiny):
    """Four bytes that begin a character and none that goes on; the text ends within one."""
    ids = [*tiny.processor.tokenizer.convert_tokens_to_ids(["è"] * 5), *tiny.processor.tokenizer.encode("ok")]
    pieces = decode_tokens(tiny.processor.tokenizer, ids)
    assert pieces == ("", "", "", "\ufffd" * 4, "", "\ufffdo", "k")
    assert decode_tokens(tiny.processor.tokenizer, ids[:2])[-1] != ""
