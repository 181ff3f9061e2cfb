"""Tiny tokenizers that begin, end and space texts as well-known families do, for tests."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = ["hello world yes no user assistant system model The movie was great"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] }}"
    "{{ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
QWEN3 = (  # drops the thinking of earlier turns, opens an empty one in the last
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}{{ '<|im_start|>tools ' + (tools | map(attribute='name') | join(',')) }}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% set text = m['content'] or '' %}"
    "{% if m['role'] == 'assistant' %}"
    "{% set thought = '' %}{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1] %}{% endif %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
    "{% endif %}{% endif %}{{ text }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<tool_call>' + call['name'] + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
R1 = (  # its generation prompt opens a thought that a turn given to it never shows
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


def bytes_tokenizer(
    special: list[str], template: str | None, *, adds: str = "$A", **names: str
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; `adds` says what it puts around a text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return _finished(core, template, adds, names)


def pieces_tokenizer(
    special: list[str], template: str | None, *, adds: str = "<s> $A", **names: str
) -> PreTrainedTokenizerFast:
    """Return a SentencePiece-like tokenizer: a space before every text, dropped when decoded."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    known = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)]
    words = ["▁" + word for word in CORPUS[0].split()]
    pieces = dict.fromkeys([*known, "▁", *letters])
    merges = {}
    for word in words:
        for end in range(2, len(word) + 1):
            merges[(word[: end - 1], word[end - 1])] = None
            pieces[word[:end]] = None
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core.model = models.BPE(
        vocab=vocabulary,
        merges=list(merges),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    return _finished(core, template, adds, {"unk_token": "<unk>", **names}, special)


def _finished(
    core: Tokenizer,
    template: str | None,
    adds: str,
    names: dict[str, str],
    special: list[str] | None = None,
) -> PreTrainedTokenizerFast:
    if special:
        core.add_special_tokens(special)
    around = [word for word in adds.split() if word != "$A"]
    core.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[(word, core.token_to_id(word)) for word in around]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = template
    return tokenizer


def gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    names = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    return bytes_tokenizer(special, GEMMA, adds="<bos> $A", **names)


def phi3() -> PreTrainedTokenizerFast:
    special = ["<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    names = dict(pad_token="<|endoftext|>", eos_token="<|endoftext|>", bos_token="<s>")
    return pieces_tokenizer(special, PHI3, adds="$A", **names)


def llama3() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return bytes_tokenizer([*special, "<|eot_id|>"], LLAMA3, adds="<|begin_of_text|> $A", **names)


def qwen(template: str = CHATML) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    return bytes_tokenizer(special, template, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def llama2() -> PreTrainedTokenizerFast:
    return pieces_tokenizer(["<s>", "</s>"], LLAMA2, bos_token="<s>", eos_token="</s>")


def mistral() -> PreTrainedTokenizerFast:
    return pieces_tokenizer(["<s>", "</s>"], MISTRAL, bos_token="<s>", eos_token="</s>")


def r1() -> PreTrainedTokenizerFast:
    special = ["<bos>", "<eos>", "<|User|>", "<|Assistant|>", "<think>", "</think>"]
    return bytes_tokenizer(special, R1, adds="<bos> $A", bos_token="<bos>", eos_token="<eos>")


FAMILIES = {
    "gemma": (gemma, "<end_of_turn>"),
    "phi3": (phi3, "<|end|>"),
    "llama3": (llama3, "<|eot_id|>"),
    "qwen2": (qwen, "<|im_end|>"),
    "llama2": (llama2, "</s>"),
    "mistral": (mistral, "</s>"),
}
"""Each family's tokenizer, and the token that ends its assistant's turn."""
