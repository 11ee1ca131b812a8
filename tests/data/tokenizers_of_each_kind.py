"""Small tokenizers of every kind that language models have, trained here, and the chat templates of today's models."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.",
    "Isn't it nice? It is! It isn't: no. Yes; don't, won't, can't. 12 + 30 = 42, 3.14, 100%.",
    "user assistant system model tool\n\nhuman: hi\n  - a list\n  - of things\n\n\tand a tab",
    "Général naïve café déjà vu. Привет, мир. 你好，世界。 emoji 🙂🙃",
    "def f(x):\n    return x * 2\n\nThe answer is: yes. The answer is: no.",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>"]


def _byte_fallback(vocab_size: int = 700, **how) -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")  # as they are trained: a mark begins a piece
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.normalizer, core.pre_tokenizer = how.get("normalizer"), how.get("pre_tokenizer")
    # Bytes are pieces of the vocabulary, no control tokens.
    spec = json.loads(core.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(spec))


def _sentencepiece(strips: bool, **how) -> Tokenizer:
    core = _byte_fallback(**how)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return core


def llama_2() -> Tokenizer:
    """LLaMA 1 and 2 in transformers' legacy form: a word-mark before every text, also behind a control token."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(True, normalizer=normalizer)


def mistral() -> Tokenizer:
    """A word-mark before the first text alone."""
    return _sentencepiece(True, pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False))


def gemma() -> Tokenizer:
    """SentencePiece without a word-mark before a text."""
    return _sentencepiece(False, normalizer=normalizers.Replace(" ", "▁"))


def byte_level() -> Tokenizer:
    """GPT-2, LLaMA 3, Qwen, SmolLM."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


KINDS = {"llama_2": llama_2, "mistral": mistral, "gemma": gemma, "byte_level": byte_level}
TURNS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
         "<start_of_turn>", "<end_of_turn>")  # fmt: skip

# name -> (template, EOS). Written for these tests: they print what the templates of those models print.
# ruff: noqa: E501
TEMPLATES = {
    "llama_2": (
        "{% if messages[0]['role'] == 'system' %}{% set first = '<<SYS>>\n' ~ messages[0]['content'] ~ '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "llama_3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
        " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{% endif %}",
        "<|eot_id|>",
    ),
    "llama_3_always_a_header": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
        " + '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        "</s>",
    ),
    "mistral_1": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "mistral_3": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% else %}"
        "{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "</s>",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim +"
        " '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "</s>",
    ),
    # Thoughts of all turns but the last are left out.
    "qwen_3": (
        "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m['content'] else '' %}"
        "{% if loop.last %}{% set content = '<think>\n' + thought + '\n</think>\n\n' + content %}{% endif %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    # The prompt for sampling opens a thought, which an answer that is there does not have.
    "opens_a_thought": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' + "
        "m['content'].split('</think>')[-1] + eos_token }}{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}",
        "</s>",
    ),
}


@functools.cache
def tokenizer(kind: str, template: str | None = None, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind; with a template, its turn tokens are control tokens."""
    core, eos = Tokenizer.from_str(KINDS[kind]().to_str()), "</s>"
    if template is not None:
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TURNS])
        core.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
        eos = TEMPLATES[template][1]
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token=eos)
    if template is not None:
        made.chat_template = TEMPLATES[template][0]
    return made
