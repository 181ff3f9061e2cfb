"""The tiny built-in task: continue a letter with letters in rising alphabetical order.

`gym.make("TextRLHF-v0")` without arguments runs this task. Its model is a two-layer Llama with 29
tokens and seeded random weights, so nothing is downloaded. It is for tests, examples and first
steps.
"""

import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
FULL_RUN = 8
"""Number of letters in rising order that give the full score of 1."""


def tiny_tokenizer(letters: str = string.ascii_lowercase) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single letters, with ids <pad> 0, <bos> 1, <eos> 2, then letters."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *letters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # nosec B106
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(  # nosec B106
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def tiny_character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of printable ASCII characters, for the texts of worlds."""
    return tiny_tokenizer(string.printable)


def tiny_character_model() -> PreTrainedModel:
    """Return a two-layer Llama with seeded weights that reads printable ASCII characters."""
    return tiny_model(vocab_size=len(SPECIAL_TOKENS) + len(string.printable))


def tiny_model(vocab_size: int = 29, hidden_size: int = 32, seed: int = 0) -> PreTrainedModel:
    """Return a two-layer Llama with seeded weights; torch's global generator is left alone."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.eval()
    return model


def tiny_prompts() -> list[str]:
    """Return the prompts of the tiny task: the letters a to h."""
    return list("abcdefgh")


def tiny_score(prompts: list[str], completions: list[str]) -> list[float]:
    """Return how far each completion rises from its prompt's last letter, in [0, 1].

    The score is the length of the completion's first run of letters that are each later in the
    alphabet than the one before, divided by 8.

    >>> tiny_score(["c"], ["dfhe"])  # d, f, h rise; e does not
    [0.375]
    """

    def run(last: str, completion: str) -> int:
        length = 0
        for letter in completion:
            if letter <= last:
                break
            last, length = letter, length + 1
        return length

    return [
        min(run(prompt[-1:], completion), FULL_RUN) / FULL_RUN
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
