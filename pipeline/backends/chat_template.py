"""Messages -> token ids, through the model's own chat template, with text that stays text.

A document may hold "<|im_end|>", and a naive encoder would turn it into the token that ends a turn: whoever
wrote the document could then speak as the system. Here only the template writes control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.text import replace_surrogates

# For a model without a template of its own: ChatML, in plain words.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render_chat(
    tokenizer: Any,
    messages: Sequence[tuple[str, str]],
    add_generation_prompt: bool = True,
    *,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """The token ids of a conversation, as the model was trained to read it.

    :param tokenizer: a transformers tokenizer.
    :param messages: (role, content) pairs, oldest first. Without a system message the template may add its own.
    :param add_generation_prompt: end with the opening of the assistant's turn.
    :param template_options: further variables for the template, such as {"enable_thinking": False}.
    :raises jinja2.TemplateError: where the template does not take these messages.
    """
    return _encode_marked(tokenizer, *_render(tokenizer, messages, add_generation_prompt, template_options))


def render_answer(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> tuple[list[int], list[int], bool]:
    """A conversation that ends with an answer, as (what is given, the answer with what ends it, merged).

    What is given are exactly the ids of `render_chat` for the messages before the answer. `merged` says that a
    tokenizer which reads both in one go would have joined tokens across that border, so they were read apart.

    :raises ValueError: where the template does not put the answer after what is given.
    """
    given_text, found_given, mark_given = _render(tokenizer, messages[:-1], True, None)
    full_text, found, mark = _render(tokenizer, messages, False, None)
    given = _encode_marked(tokenizer, given_text, found_given, mark_given)
    full = _encode_marked(tokenizer, full_text, found, mark)
    if full[: len(given)] == given:
        return given, full[len(given) :], False
    if mark != mark_given or not full_text.startswith(given_text):
        raise ValueError("the chat template writes something else before an answer than it asks for one with")
    return given, _encode_marked(tokenizer, full_text[len(given_text) :], found, mark), True


def _render(
    tokenizer: Any,
    messages: Sequence[tuple[str, str]],
    add_generation_prompt: bool,
    options: Mapping[str, Any] | None,
) -> tuple[str, list[str], str]:
    """The conversation as text, the control strings hidden from it, and the mark that stands in for them.

    Each control string in a message becomes "mark number mark" for the rendering, so that the template still sees
    the message itself (some trim it or look into it), and is put back, as ordinary text, afterwards.
    """
    controls = _control_strings(tokenizer)
    mark = _unused_mark([content for _, content in messages])
    found: list[str] = []

    def hide(match: re.Match[str]) -> str:
        found.append(match.group())
        return f"{mark}{len(found) - 1}{mark}"

    hidden = [{"role": role, "content": controls.sub(hide, replace_surrogates(content))} for role, content in messages]
    return _apply_template(tokenizer, hidden, add_generation_prompt, options or {}), found, mark


def _encode_marked(tokenizer: Any, text: str, found: Sequence[str], mark: str) -> list[int]:
    ids: list[int] = []
    for index, piece in enumerate(text.split(mark)):
        if index % 2 == 0:
            ids += _encode(tokenizer, piece)
        else:  # letter by letter: no part of it can be a control string then
            ids += [id_ for letter in found[int(piece)] for id_ in _encode(tokenizer, letter)]
    return ids


def _apply_template(
    tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool, options: Mapping[str, Any]
) -> str:
    """The conversation as text. Where the template refuses a system message (Gemma's do), the user says it instead."""
    from jinja2 import TemplateError

    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    settings = {"chat_template": template, "add_generation_prompt": add_generation_prompt, "tokenize": False, **options}
    try:
        return str(tokenizer.apply_chat_template(messages, **settings))
    except TemplateError:
        if len(messages) < 2 or messages[0]["role"] != "system":
            raise
        system, first, *rest = messages
        merged = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
        return str(tokenizer.apply_chat_template([merged, *rest], **settings))


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _control_strings(tokenizer: Any) -> re.Pattern[str]:
    """Every string the tokenizer would cut out before it reads text, the longest first (blanks are harmless)."""
    strings = sorted((token for token in tokenizer.get_added_vocab() if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, strings)) or "(?!)")  # (?!) matches nothing


def _unused_mark(contents: Sequence[str]) -> str:
    """A private-use string that no content holds."""
    mark = "\ue000"
    while any(mark in content for content in contents):
        mark += "\ue000"
    return mark
