"""From a problem and its pictures to the model's inputs, and from tokens back to text."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL import Image

from attention_heatmap.log import one_line
from attention_heatmap.recording import torch

# Reason-RFT's own question prompt; {Question} is replaced by the sample's problem.
DEFAULT_PROMPT_TEMPLATE = (
    "{Question} Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)
_PLAIN = ("PaliGemmaProcessor", "FuyuProcessor")  # their models are prompted without a template, pictures first


def prompt_text(processor: Any, content: list[dict]) -> str:
    """One user message as the text of a prompt. Raises ValueError where the processor has no chat template."""
    own, borrowed = (getattr(holder, "chat_template", None) for holder in (processor, processor.tokenizer))
    if own or borrowed:
        message = {"role": "user", "content": content}
        template = {} if own else {"chat_template": borrowed}
        try:
            return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False, **template)
        except Exception as error:  # a template is a program of its own
            raise ValueError(f"the checkpoint's chat template cannot be used: {one_line(error)}; mend it") from error
    name = type(processor).__name__
    if name in _PLAIN:
        picture = processor.image_token if name == "PaliGemmaProcessor" else ""  # fuyu's puts its own
        return "".join(picture if part["type"] == "image" else part["text"] for part in content)
    raise ValueError(f"{name} has no chat template; add chat_template.jinja to the checkpoint's directory")


def check_chat_template(processor: Any) -> None:
    """Raises ValueError for a chat template that leaves out the pictures or the problem, as one made for text does."""
    marked = {"type": "text", "text": "{Question}"}
    plain, whole = (prompt_text(processor, [*pictures, marked]) for pictures in ([], [{"type": "image"}]))
    left_out = "the problem" if "{Question}" not in whole else "pictures"
    unmarked = plain == whole and type(processor).__name__ != "FuyuProcessor"
    if unmarked or "{Question}" not in whole or "'type'" in whole:
        advice = "add the chat_template.jinja of a vision-language model"
        raise ValueError(f"the checkpoint's chat template leaves {left_out} out: it is made for text; {advice}")


def build_inputs(processor: Any, problem: str, images: Sequence[Image.Image], prompt_template: str) -> Any:
    """The model's inputs for one problem and its pictures, by the processor's own chat template: batch 1, on the CPU.

    Raises ValueError when the processor has no chat template, or cannot take these pictures.
    """
    question = prompt_template.replace("{Question}", problem)
    text = prompt_text(processor, [*({"type": "image"} for _ in images), {"type": "text", "text": question}])
    # As apply_chat_template does: a template that writes the first token leaves none to the tokenizer.
    begun = processor.tokenizer.bos_token is not None and text.startswith(processor.tokenizer.bos_token)
    special = {"add_special_tokens": False} if begun else {}
    try:
        inputs = process(processor, text, images, **special)
    except Exception as error:  # each processor has its own complaints
        told = f"{type(processor).__name__} cannot take the problem and its {len(images)} picture(s): {one_line(error)}"
        raise ValueError(f"{told}; check the pictures' sizes and processor_kwargs") from error
    inputs.pop("labels", None)
    if (count := len(inputs.get("input_ids", [0]))) != 1:
        raise ValueError(f"{type(processor).__name__} asks {count} questions of its own in place of the problem")
    return inputs


def process(processor: Any, text: str, pictures: Sequence[Any], **options: Any) -> Any:
    """What a processor makes of a prompt and its pictures: tensors of batch 1."""
    if type(processor).__name__ == "Cosmos3EdgeProcessor":  # gives what its model needs only when asked
        options["return_mm_token_type_ids"] = True
    flat = type(processor).__name__ == "GotOcr2Processor"  # wants no list of pictures for each prompt
    pictures = list(pictures) if flat else [list(pictures)]
    return processor(text=[text], images=pictures, return_tensors="pt", **options)


def input_device(model: Any) -> Any:
    """Where a model takes its inputs. The weights of a part that is kept on the host or on disk are on "meta"."""
    held_elsewhere = model.device.type == "meta"
    return torch.device(model.get_input_embeddings()._hf_hook.execution_device) if held_elsewhere else model.device


def append_response(inputs: Any, response_ids: Sequence[int]) -> dict:
    """The inputs with a response's tokens after the prompt, for one teacher-forced pass."""
    extended, T = dict(inputs), len(response_ids)
    for key, value in inputs.items():
        if key == "input_ids":
            tail = torch.tensor([list(response_ids)])
        elif key == "cross_attention_mask":  # (1, P, pictures, tiles): the response sees what the prompt's end sees
            tail = value[:, -1:].repeat(1, T, 1, 1)
        elif torch.is_tensor(value) and value.shape == inputs["input_ids"].shape:
            # The attention mask goes on with 1, token types with the text's 0. Paligemma's 0 is the prefix.
            one = key == "attention_mask" or (key == "token_type_ids" and not value.any())
            tail = torch.full((1, T), int(one))
        else:
            continue
        extended[key] = torch.cat([value, tail.to(value)], dim=1)
    return extended


def forced_pass(model: Any, inputs: Any, response_ids: Sequence[int], **options: Any) -> Any:
    """The model's output for prompt and response, by one pass without a cache and without gradients.

    The response's last token is left out: it produces nothing that is shown. options: a `logits_to_keep` among them
    must be a slice. A number would make gemma4 cut its queries; a tensor would be moved by accelerate to the card where
    the model begins, which need not be that of its last layers.
    """
    with torch.inference_mode():
        return model(**append_response(inputs, response_ids[:-1]), use_cache=False, **options)


def decode_tokens(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """The text of every token, so that joined they are the decoded text.

    Tokens are decoded behind the one before, never alone: a character whose bytes are spread over several
    tokens comes whole, with the last of them, and leading spaces are kept.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ids, pieces = list(token_ids), []
    before, start = 0, 0  # ids[before:start] is text that is out already, ids[start:] waits for its last byte
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end])
        # A UTF-8 character has at most four bytes: what is broken for longer is no character.
        if text.endswith("\ufffd") and end - start < 4 and end < len(ids):
            pieces.append("")
        else:
            pieces.append(text[len(decode(ids[before:start])) :])
            before, start = start, end
    return tuple(pieces)
