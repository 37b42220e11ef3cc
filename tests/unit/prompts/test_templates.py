"""promptsource's templates, read unchanged."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elkflow.common.errors import UserError
from elkflow.common.paths import PROMPTS
from elkflow.prompts.templates import Template, load_template

OLD = """
dataset: glue
subset: qnli
templates:
  50c3108c: !Template
    answer_choices:
    - 'yes'
    - 'no'
    id: 50c3108c
    jinja: '{{sentence}}

      Does that sentence have all you need to answer the question "{{question}}"?

      |||

      {{answer_choices[label]}}'
    metadata: !TemplateMetadata
      _do_eval: false
      metric: null
    name: all
    reference: ''
  5f0f24d9: !Template
    answer_choices: yes ||| no
    id: 5f0f24d9
    jinja: 'Is "{{question}}" answered by {{"A) this:"}} {{sentence}} ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {choices_in_prompt: false, languages: [en], metrics: [Accuracy], original_task: true}
    name: based
    reference: ''
"""
ROW = {"sentence": "Rome is old.", "question": "How old is Rome?", "label": 1}


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "templates.yaml"
    path.write_text(OLD)
    return path


def test_both_of_promptsources_ways_to_list_answers(old):
    text = 'Rome is old.\nDoes that sentence have all you need to answer the question "How old is Rome?"?'
    assert load_template(f"{old}:all").render(ROW) == (text, "no", ["yes", "no"])
    text = 'Is "How old is Rome?" answered by A) this: Rome is old.'
    assert load_template(f"{old}:based").render(ROW) == (text, "no", ["yes", "no"])


def test_fields_are_the_columns_read(old):
    assert load_template(f"{old}:all").fields == {"sentence", "question", "label"}
    assert Template("t", "{{a}} ||| {{answer_choices[b]}}", "{{c}} ||| {{d}}").fields == {"a", "b", "c", "d"}


def test_answers_out_of_the_row():
    template = Template("copa", "{{premise}} ||| {{answer_choices[label]}}", "{{choice1}} ||| {{choice2}}")
    row = {"premise": "It rained.", "choice1": "I got wet.", "choice2": "I sang.", "label": 1}
    assert template.render(row) == ("It rained.", "I sang.", ["I got wet.", "I sang."])


def test_the_bar_may_stand_inside_a_condition():
    template = Template("t", "{% if label %}{{x}} is so ||| yes{% else %}{{x}} is so ||| no{% endif %}", None)
    assert template.render({"x": "It", "label": 0}) == ("It is so", "no", None)


def test_promptsources_helpers():
    template = Template(
        "t", "{{ [1, 2, 2] | most_frequent }} {% for a, b in zip([1], [2]) %}{{a}}{{b}}{% endfor %}", None
    )
    assert template.render({})[0] == "[2] 12"


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ue000\r"), max_size=40))
def test_whatever_the_data_holds_comes_out_as_it_was(text):
    """Bars, braces and quotes in the data are text, never template."""
    template = Template("t", "[{{x}}] ||| <{{x}}>", "<{{x}}> ||| other")
    question, right, answers = template.render({"x": text})
    assert question == f"[{text}]"
    assert right == answers[0] == f"<{text}>"
    assert answers[1] == "other"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ x.__init__.__globals__ }}",
        "{% set _ = x.append(1) %}",
    ],
)
def test_the_sandbox_holds(attack):
    import jinja2

    with pytest.raises(jinja2.TemplateError):
        Template("t", attack, None).render({"x": [0]})


def test_a_missing_column_is_an_error():
    import jinja2

    with pytest.raises(jinja2.UndefinedError, match="'sentence' is undefined"):
        Template("t", "{{sentence}}", None).render({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: [", "not a promptsource template file"),
        ("just words", "not a promptsource template file"),
        ("templates: {a: !Template {name: a}}", "not a promptsource template file ('jinja')"),
        ("templates: {a: !Template {name: a, jinja: '{% if %}'}}", "template 'a' is not valid Jinja"),
        ("templates: {a: !Template {name: a, jinja: x}, b: !Template {name: b, jinja: y}}", "has 'a', 'b'; give one"),
        ("templates: {a: !!python/object/apply:os.system ['true']}", "not a promptsource template file"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_template(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_is_not_there(old):
    with pytest.raises(UserError, match=r"template 'nowhere': no file .*qnli_training"):
        load_template("nowhere")
    with pytest.raises(UserError, match="has 'all', 'based'"):
        load_template(f"{old}:every")


@pytest.mark.parametrize("path", sorted(PROMPTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_templates_that_ship_are_valid_and_render(path):
    names = re.findall(r"^    name: (.+)$", path.read_text(), flags=re.M)
    assert names
    for name in names:
        template = load_template(f"{path.stem}:{yaml.safe_load(name)}")
        row = {field: f"some {field}" for field in template.fields} | {"label": 0}
        question, right, answers = template.render(row)
        assert right == answers[0] and len(set(answers)) == len(answers) >= 2
        # Nothing of the row is left out, and the question does not give the answer away.
        assert all(
            row[field] in question
            for field in template.fields - {"label"}
            if field != "question" or "cause" not in template.jinja
        )
        turned = template.render(row | {"label": 1})
        assert turned[0] == question and turned[1] == answers[1]
