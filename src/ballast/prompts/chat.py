r"""One prompt, with or without its answer, as the token ids that a model expects.

A tokenizer with a chat template: prompt and answer are rendered together by that template. The prompt alone, rendered
with the opening of the answer, must give the first of these ids; so what is scored as an answer is what the model would
have had to generate. The thinking mode of templates that have one is off.

A tokenizer without a template gets a plain format, `Question: {prompt}\nAnswer: {response}`, with the tokenizer's own
special tokens in front and its end-of-text token (if it has one) after the answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ballast.errors import PromptError

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"


class Rendered(NamedTuple):
    """Token ids of a prompt and, behind them, of its answer if there is one.

    Attributes:
        ids: All token ids, without padding.
        prompt_length: How many of them belong to the prompt, including the tokens that open the answer.
    """

    ids: list[int]
    prompt_length: int


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str | None = None, *, system: str | None = None
) -> Rendered:
    """Format one exchange of a user and an assistant.

    The answer ends with the model's end-of-turn token: the first special token behind the text of the answer. What a
    template writes after it, such as a line break, is cut off, for a model stops before it. A template that closes an
    answer with no special token leaves the bare text. White space around `response` is dropped, since templates trim it
    or merge it with their own.

    Args:
        tokenizer: Any tokenizer of transformers.
        prompt: What the user asks.
        response: The answer; None for a prompt that is to be answered.
        system: System message in front of the prompt; None leaves that to the template.

    Raises:
        PromptError: The template rejects the exchange, or renders the prompt differently when an answer follows.
    """
    asked = _ids(tokenizer, prompt, None, system)
    if response is None:
        return Rendered(asked, len(asked))
    answered = _ids(tokenizer, prompt, response.strip(), system)
    if answered[: len(asked)] != asked:
        raise PromptError(
            f"The chat template of {tokenizer.name_or_path or type(tokenizer).__name__} changes the prompt when an "
            f"answer follows (prompt {_shortened(prompt)!r}); use one whose generation prompt begins every answer."
        )
    return Rendered(asked + _without_tail(tokenizer, answered[len(asked) :]), len(asked))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that are no text, such as the end of a turn."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def check_length(rendered: Rendered, context: int, prompt_id: str) -> None:
    """Refuse what does not fit into the model.

    Args:
        rendered: From `render`; if an answer is still to be generated, subtract its length from `context`.
        context: The largest number of tokens allowed.
        prompt_id: Names the prompt in the error.

    Raises:
        PromptError: There are more than `context` tokens.
    """
    if len(rendered.ids) > context:
        raise PromptError(
            f"Prompt {prompt_id!r} takes {len(rendered.ids)} tokens and there is room for {context}; "
            "shorten it or leave it out."
        )


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str | None, system: str | None) -> list[int]:
    if not tokenizer.chat_template:
        return _plain_ids(tokenizer, prompt, response, system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=response is None,
            tokenize=True,
            return_dict=True,
            enable_thinking=False,  # read by the templates that have such a switch, ignored by the others
        )
    except TemplateError as error:
        raise PromptError(f"The chat template rejects prompt {_shortened(prompt)!r} ({error}); rewrite it.") from error
    return list(encoded["input_ids"])


def _plain_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str | None, system: str | None) -> list[int]:
    text = ("" if system is None else f"{system}\n") + PLAIN_PROMPT.format(prompt=prompt)
    end = tokenizer.eos_token_id
    ids: list[int] = list(tokenizer(text if response is None else f"{text} {response}")["input_ids"])
    if ids[-1:] == [end]:  # some tokenizers end every text by themselves
        ids.pop()
    return ids if response is None or end is None else [*ids, end]


def _without_tail(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Cut what a template writes behind an answer: all after the first special token of the closing run.

    The closing run are the last tokens as far as they are special or white space.
    """
    special = special_ids(tokenizer)
    start = len(ids)
    while start and (ids[start - 1] in special or not str(tokenizer.decode(ids[start - 1])).strip()):
        start -= 1
    end = next((position + 1 for position in range(start, len(ids)) if ids[position] in special), start)
    return ids[:end]


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
