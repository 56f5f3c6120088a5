"""Chat templates: the Jinja by which a request becomes a prompt. It runs in transformers' own sandbox, and may fail in any way."""

import traceback
from pathlib import Path
from typing import Any

import jinja2

TRIED = "Describe owls."
"""The request on which a file's template is tried."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Tokens that a template may name; on trial they stand for themselves."""


def read(file: Path) -> str:
    """A template of the user's own, after it was tried on a request.

    Raises: OSError, UnicodeDecodeError where it cannot be read; ValueError with the line, and why, where it does not work.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = file.read_text(encoding="utf-8")
    named: dict[str, Any] = {name: f"<{name}>" for name in SPECIAL}
    try:
        render_jinja_template([_conversation(TRIED)], chat_template=template, add_generation_prompt=True, **named)
    except Exception as error:  # a template raises what the code in it raises
        raise ValueError(_why(error)) from error
    return template


def filled(tokenizer: Any, template: str, request: str) -> str:
    """The prompt of a request, up to where the answer begins. Raises ValueError with the line, and why, where the template fails."""
    try:
        return tokenizer.apply_chat_template(
            _conversation(request), chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise ValueError(
            f"the chat template fails on the request {request[:60]!r}, {_why(error)}. Choose another: --template none or "
            "--template FILE (in Python template=)."
        ) from error


def _conversation(request: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}]


def _why(error: Exception) -> str:
    """The line of a template, and what is wrong there."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        line, said = error.lineno, error.message
    else:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
        line, said = inside[-1] if inside else None, str(error)
    return f"line {'unknown' if line is None else line}: {said} ({type(error).__name__})"
