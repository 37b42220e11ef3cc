"""Prefix trees: shared prefixes are computed once, and batches keep to their budget."""

from tiny_states import TOKENIZER, YES_NO, sentences

from elkflow.batching.prefix_tree import batch_lines, tree_lines
from elkflow.hiddens.tokenise import tokenise_prompts


def test_shared_layout_computes_common_beginnings_once():
    opening = "what is the capital of italy " * 5
    questions = tokenise_prompts(TOKENIZER, "decoder", [opening + "rome", opening + "paris"], [YES_NO] * 2)
    lines = tree_lines(questions, width=512, longest=100)
    assert [len(line.ids) for line in lines] == [30 + 2 * (1 + 2)]
    assert lines[0].slots == [2, 3, 0, 1]
    narrow = tree_lines(questions, width=3, longest=100)
    assert len(narrow) == 2, "in a narrow model attention over a longer line costs more than it saves"


def test_batches_respect_their_budget_and_start_with_the_longest():
    questions = tokenise_prompts(TOKENIZER, "decoder", sentences(40), [YES_NO] * 40)
    lines = tree_lines(questions, width=8, longest=64)
    found = list(batch_lines(lines, 100))
    assert sum(map(len, found)) == len(lines)
    assert all(len(batch) == 1 or len(batch) * len(batch[0].ids) <= 100 for batch in found)
    lengths = [len(line.ids) for batch in found for line in batch]
    assert lengths == sorted(lengths, reverse=True)
