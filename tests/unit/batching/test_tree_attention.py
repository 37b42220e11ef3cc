"""Windows of tree attention: each token attends to its ancestors, in few columns."""

import math

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import WORDS
from tiny_states import TOKENIZER, YES_NO

from elkflow.batching.prefix_tree import PromptWithAnswers, join_lines, tree_lines
from elkflow.batching.tree_attention import attention_windows
from elkflow.hiddens.tokenise import tokenise_prompts


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=20),
    size=st.sampled_from([1, 3, 8, 64]),
)
@hypothesis_settings(max_examples=50, deadline=None)
def test_windows_show_every_token_its_ancestors_and_nothing_else(prompts, size):
    questions = [PromptWithAnswers(row, prompt, [[7], [8, 9]]) for row, prompt in enumerate(prompts)]
    line = join_lines(tree_lines(questions, math.inf, 40))
    columns, seen = attention_windows(line, size)
    assert seen.shape == (math.ceil(len(line.ids) / size), size, columns.shape[1])
    for node, parent in enumerate(line.parent):
        looks_at = columns[node // size][seen[node // size, node % size]].tolist()
        ancestors = [node]
        while parent >= 0:
            ancestors.append(parent)
            parent = line.parent[parent]
        assert sorted(looks_at) == sorted(ancestors)
    assert seen.any(-1).all(), "no softmax is over an empty set"


def test_windows_are_narrow_however_long_the_line_is():
    opening = "what is the capital of italy " * 5
    questions = tokenise_prompts(
        TOKENIZER, "decoder", [f"{opening}{a} {b}" for a in WORDS for b in WORDS], [YES_NO] * 400
    )
    line = join_lines(tree_lines(questions, math.inf, 10_000))
    assert len(line.ids) > 1000 and attention_windows(line, 16)[0].shape[1] < 33 + 16 + 1
