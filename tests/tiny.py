"""Tiny things to test with: a random Llama with a word-level tokenizer, made in about a second."""

from pathlib import Path

TEXT = "yes no is the does sentence contain answer to question what who capital of Yes No paris france rome italy"
WORDS = TEXT.split(" ")
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def tiny_tokenizer(texts=(), chat=True):
    """A word-level tokenizer that knows the words of `texts`; everything else is `<unk>`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    split = pre_tokenizers.Split(Regex(r"<[^> ]*>|\w+|[^\w\s]"), "removed", invert=True)
    pieces = [piece for text in [*WORDS, *texts] for piece, _ in split.pre_tokenize_str(text)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *pieces]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def tiny_llama(vocabulary: int, seed: int = 0, layers: int = 4, hidden: int = 32):
    """A random Llama: `layers` blocks of width `hidden`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_model(folder: Path, texts=(), chat=True, **kwargs) -> Path:
    """Save model and tokenizer as a checkpoint folder, as `path:` sources expect it."""
    tokenizer = tiny_tokenizer(texts, chat)
    tiny_llama(len(tokenizer), **kwargs).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def moved(policy):
    """The policy after its trained parts were changed at random."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in policy.trained():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


TEXTS = ["Sentence Question Does the sentence contain the answer to the question Reply Yes or No . : ? truthful"]


def make_checkpoint(folder, chat=True, **config):
    tiny_tokenizer(TEXTS, chat).save_pretrained(folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 128} | config
    from elkflow.common.files import write_json

    write_json(folder / "config.json", config)
    return folder
