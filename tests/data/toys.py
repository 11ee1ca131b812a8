"""Tiny tokenizers and files."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def char_tokenizer(*, bos="<s>", eos="</s>", pad=None, adds_bos=True, chat=None, spaces=False):
    """One token a character. `adds_bos`: its post-processor puts BOS in front. `spaces`: SentencePiece's leading space."""
    special = ["<unk>", *dict.fromkeys(t for t in (bos, eos, pad) if t)]
    vocab = {token: i for i, token in enumerate([*special, "▁", *(chr(c) for c in range(32, 127)), "\n"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    if spaces:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(special)
    if adds_bos and bos:
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token=bos, eos_token=eos, pad_token=pad)
    if chat is not None:
        made.chat_template = chat
    return made


def write_jsonl(path, rows):
    """Rows as a JSONL file; the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opinion(prompt="q", accepted=1, rejected=0, **more):
    """A row of the gdpo format."""
    return {
        "prompt": prompt,
        "options": ["no", "yes", "maybe"],
        "probabilities": [0.25, 0.5, 0.25],
        "accept_choice_id": accepted,
        "accept_choice": ["no", "yes", "maybe"][accepted],
        "accept_response": f"good{accepted}",
        "reject_choice_id": rejected,
        "reject_choice": ["no", "yes", "maybe"][rejected],
        "reject_response": f"bad{rejected}",
        **more,
    }
