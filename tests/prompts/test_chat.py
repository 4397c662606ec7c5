"""Rendering: the prompt's ids begin the answer's ids, and the answer ends with its end-of-turn token."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

from ballast.errors import PromptError
from ballast.prompts.chat import Rendered, check_length, render
from tests.zoo import BOS, EOS, tiny_tokenizer

THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TURN_TEMPLATE = (  # the end of a turn, as in Gemma, and the end of the text behind it
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n{{ message.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n"
    "{% elif messages[-1].role == 'assistant' %}{{ eos_token }}{% endif %}"
)
SPACED_TEMPLATE = (  # white space before the end-of-text token, as in Llama 2
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
BARE_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHANGING_TEMPLATE = (
    "{% if messages | length > 1 %}With answer. {% endif %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)


def split(tokenizer: PreTrainedTokenizerFast, rendered: Rendered) -> tuple[str, str]:
    return (
        tokenizer.decode(rendered.ids[: rendered.prompt_length]),
        tokenizer.decode(rendered.ids[rendered.prompt_length :]),
    )


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_prompt_alone_ends_where_the_answer_is_to_begin() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(tokenizer, "Why?")
    assert rendered.prompt_length == len(rendered.ids)
    assert tokenizer.decode(rendered.ids) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_answer_has_its_end_of_turn_and_nothing_behind_it() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(tokenizer, "Why?", "Because.")
    assert split(tokenizer, rendered) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "Because.<|im_end|>",
    )
    assert rendered.ids[: rendered.prompt_length] == render(tokenizer, "Why?").ids
    assert rendered.ids[-1] == EOS
    assert len(rendered.ids) - rendered.prompt_length == len("Because.") + 1  # one token a byte


@pytest.mark.parametrize("response", ["Because.", " \nBecause.\n\n "])
def test_white_space_around_an_answer_does_not_matter(response: str) -> None:
    tokenizer = tiny_tokenizer()
    assert render(tokenizer, "Why?", response) == render(tokenizer, "Why?", "Because.")


def test_white_space_and_characters_of_several_bytes_within_an_answer_are_kept() -> None:
    tokenizer = tiny_tokenizer()
    assert split(tokenizer, render(tokenizer, "Why?", "Ça\n\n va… 好"))[1] == "Ça\n\n va… 好<|im_end|>"


def test_an_empty_answer_is_an_end_of_turn() -> None:
    rendered = render(tiny_tokenizer(), "Why?", "")
    assert rendered.ids[rendered.prompt_length :] == [EOS]


def test_thinking_is_off() -> None:
    tokenizer = with_template(THINKING_TEMPLATE)
    prompt, answer = split(tokenizer, render(tokenizer, "Why?", "Because."))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == "Because.<|im_end|>"


def test_answer_stops_at_an_end_of_turn_before_the_end_of_text() -> None:
    tokenizer = with_template(TURN_TEMPLATE)
    # Special, but not one of the tokens that the tokenizer has a name for.
    tokenizer.add_tokens([AddedToken(turn, special=True) for turn in ("<start_of_turn>", "<end_of_turn>")])
    rendered = render(tokenizer, "Why?", "Because.")
    assert rendered.ids[0] == BOS
    assert rendered.ids.count(BOS) == 1
    assert split(tokenizer, rendered)[1] == "Because.<end_of_turn>"


def test_white_space_before_the_end_of_turn_belongs_to_the_answer() -> None:
    tokenizer = with_template(SPACED_TEMPLATE)
    assert split(tokenizer, render(tokenizer, "Why?", "Because.")) == ("[INST] Why? [/INST]", " Because. <|im_end|>")


def test_template_without_an_end_of_turn_leaves_the_bare_answer() -> None:
    tokenizer = with_template(BARE_TEMPLATE)
    assert split(tokenizer, render(tokenizer, "Why?", "Because."))[1] == "Because."


def test_plain_format() -> None:
    tokenizer = tiny_tokenizer(template=False)
    assert tokenizer.decode(render(tokenizer, "Is {this} one?").ids) == "Question: Is {this} one?\nAnswer:"
    assert split(tokenizer, render(tokenizer, "Why?", "Because. ")) == (
        "Question: Why?\nAnswer:",
        " Because.<|im_end|>",
    )


def test_plain_format_of_a_tokenizer_that_ends_every_text_itself() -> None:
    tokenizer = tiny_tokenizer(template=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", BOS), ("<|im_end|>", EOS)]
    )
    rendered = render(tokenizer, "Why?", "Because.")
    assert split(tokenizer, rendered) == ("<s>Question: Why?\nAnswer:", " Because.<|im_end|>")


def test_a_system_message_stands_in_front_with_and_without_a_template() -> None:
    for tokenizer, before in (
        (tiny_tokenizer(), "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (tiny_tokenizer(False), "Be kind.\n"),
    ):
        plain, told = (split(tokenizer, render(tokenizer, "Hi", "No.", system=text)) for text in (None, "Be kind."))
        assert told == (before + plain[0], plain[1])


def test_template_that_changes_the_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match=r"changes the prompt when an answer follows \(prompt 'Why\?'\)"):
        render(with_template(CHANGING_TEMPLATE), "Why?", "Because.")


def test_template_that_rejects_a_prompt_gives_its_reason() -> None:
    tokenizer = with_template("{{ raise_exception('no such role') }}")
    with pytest.raises(PromptError, match=r"rejects prompt 'Why.*no such role"):
        render(tokenizer, "Why?" * 30)


def test_length_is_checked_by_name() -> None:
    rendered = Rendered(list(range(10)), 6)
    check_length(rendered, 10, "a-1")
    with pytest.raises(PromptError, match="'a-1' takes 10 tokens and there is room for 9"):
        check_length(rendered, 9, "a-1")
