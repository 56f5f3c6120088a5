"""Chat templates that work, and those that do not: with the line, and why, before a model is read."""

import hf
import pytest

import jaxpatch as jp
from jaxpatch.models import checkpoints, templates
from jaxpatch.models.differences import Choices

BROKEN = {
    "syntax": ("{{ messages[0]['content'] }}\n{% if %}", "line 2: Expected an expression, got"),
    "messages": ("a\nb\n{{ messages[9]['content'] }}", "line 3: list object has no element 9 (UndefinedError)"),
    "its own words": ("{{ raise_exception('a system message first') }}", "line 1: a system message first"),
    "types": ("{{ messages[0] + 1 }}", "line 1: unsupported operand"),
    "endless": ("{% for n in range(10**9) %}{% endfor %}", "line 1: Range too big"),
    "code": ("{{ messages.__class__.mro() }}", "line 1: access to attribute '__class__'"),
}


@pytest.fixture
def model(tmp_path):
    return hf.save_tokenizer(hf.save(tmp_path / "model", vocab_size=300))


def test_a_file_that_works_is_read(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ bos_token + messages[0]['content'] }}{% if add_generation_prompt %} A:{% endif %}\n")
    assert templates.read(file) == file.read_text()
    assert checkpoints.choice_faults(Choices(template=str(file))) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_fails_is_refused_before_any_model_is_read(tmp_path, name):
    content, said = BROKEN[name]
    file = tmp_path / "own.jinja"
    file.write_text(content)
    [fault] = checkpoints.choice_faults(Choices(template=str(file)))
    assert str(file) in fault and said in fault and "name another file" in fault, fault
    with pytest.raises(ValueError, match=r"own\.jinja, line"):
        checkpoints.load_pair("no/such/base", "no/such/special", template=str(file))


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoints_own_template_that_fails_says_on_which_request(model, tmp_path, name):
    content, said = BROKEN[name]
    (model / "chat_template.jinja").write_text(content)
    pair = checkpoints.load_pair(model, hf.save_adapter(tmp_path / "adapter", model))
    with pytest.raises(ValueError) as caught:
        jp.encode(pair, ["Describe bees."])
    message = str(caught.value)
    assert "fails on the request 'Describe bees.'" in message and said in message and "--template" in message, message
