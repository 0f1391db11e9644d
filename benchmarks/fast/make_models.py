"""A teacher, a student and prompts for the fast bench, from public text, in a few minutes.

`python benchmarks/fast/make_models.py runs/fast/models --data-dir DIR` reads `tinyshakespeare.txt.gz` (public domain), `wikitext2_valid.txt.gz`
and `wikitext2_test.txt.gz` (CC BY-SA 3.0) from DIR/text. A document is a speech or a sentence or two; a prompt is its beginning. The
teacher learns whole documents, ended by an end-of-text token, so that its answers end. Test prompts come from text that neither has seen.
"""

import argparse
import gzip
import math
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_llama import CHAT_TEMPLATE, EOS, IGNORED, MODEL_INFO, Size, batch_of, new_model, save, train_model
from told import script

from tdistill.runtime.files import write_json, write_jsonl
from tdistill.runtime.progress import say

TEACHER, START = Size(256, 5, 700, 2e-3), Size(128, 3, 250, 3e-3)


@dataclass(frozen=True)
class Plan:
    """Everything that shapes the outcome beside the text."""

    vocab: int = 1024
    shortest: int = 24  # tokens of a document
    longest: int = 80
    prompt_share: float = 0.3  # of a document's words
    batch: int = 48
    teacher: Size = TEACHER
    start: Size = START
    train: int = 768  # prompts
    valid: int = 128
    test: int = 128  # of each of the two held-out texts
    seed: int = 0


def main() -> None:
    options = _options()
    plan = Plan(seed=options.seed)
    texts = {name: gzip.decompress((options.data_dir / "text" / f"{name}.txt.gz").read_bytes()).decode() for name in (*TRAINING, HELD_OUT)}
    make(texts, plan, options.output)


TRAINING, HELD_OUT = ("tinyshakespeare", "wikitext2_valid"), "wikitext2_test"
HELD_OUT_SHARE = 0.05  # of Shakespeare


def make(texts: dict[str, str], plan: Plan, output: Path) -> None:
    """Write ``teacher``, ``start``, the prompt files, and what they are."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(plan.seed)
    speeches = [s.strip() for s in re.split(r"\n\s*\n", texts["tinyshakespeare"]) if s.strip()]
    cut = int(len(speeches) * (1 - HELD_OUT_SHARE))
    training = speeches[:cut] + sentences(texts["wikitext2_valid"])
    tokenizer = train_tokenizer(training, plan.vocab)
    held_out = [fitting(part, tokenizer, plan) for part in (speeches[cut:], sentences(texts[HELD_OUT]))]
    training = fitting(training, tokenizer, plan)
    for part in (training, *held_out):
        rng.shuffle(part)
    n = plan.train + plan.valid
    splits = {"train": training[: plan.train], "valid": training[plan.train : n], "test": [d for part in held_out for d in part[: plan.test]]}
    for name, documents in splits.items():
        write_jsonl(output / f"{name}.jsonl", [dict(zip(("prompt", "completion"), halves(d, plan), strict=True)) for d in documents])
    info = {"plan": asdict(plan), "documents": {"training": len(training), "held_out": [len(p) for p in held_out]}}
    measured = [d for part in held_out for d in part[plan.test :]]
    for name, size in (("teacher", plan.teacher), ("start", plan.start)):
        started = time.perf_counter()
        model = train_model(new_model(tokenizer, size, plan.seed), partial(sampled, training, plan), tokenizer, size, plan.seed, name)
        save(model, tokenizer, output / name)
        info[name] = quality(model, tokenizer, measured, plan) | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": time.perf_counter() - started,
        }
        say(f"{name}: {info[name]}")
    write_json(output / MODEL_INFO, info)


def sentences(text: str) -> list[str]:
    """WikiText paragraphs as runs of two sentences, without headings and its marks."""
    found = []
    for line in text.splitlines():
        clean = re.sub(r" @(.)@ ", r"\1", line.strip()).replace("<unk>", "")
        clean = re.sub(r"\s+", " ", re.sub(r" ([,.;:!?)])", r"\1", clean)).strip()
        if clean and not clean.startswith("="):
            parts = re.split(r"(?<=[.!?]) ", clean)
            found += [" ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return found


def train_tokenizer(documents: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose template is the prompt itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[EOS], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def fitting(documents: list[str], tokenizer: PreTrainedTokenizerFast, plan: Plan) -> list[str]:
    """Those of suitable length."""
    lengths = [len(ids) for ids in tokenizer(documents).input_ids]
    return [d for d, n in zip(documents, lengths, strict=True) if plan.shortest <= n < plan.longest]


def halves(document: str, plan: Plan) -> tuple[str, str]:
    """Prompt and continuation, cut before a word."""
    starts = [m.start() for m in re.finditer(r"\s\S", document)]
    cut = starts[max(int(len(starts) * plan.prompt_share), 1)]
    return document[:cut], document[cut:]


def sampled(documents: list[str], plan: Plan, rng: random.Random) -> list[tuple[str, str]]:
    """Return the documents of a step. Nothing of them is given."""
    return [("", d) for d in rng.sample(documents, min(plan.batch, len(documents)))]


@torch.no_grad()
def quality(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[str], plan: Plan) -> dict[str, float]:
    """Perplexity a token and bits a byte on documents that nobody trained on."""
    nats, tokens, sizes = 0.0, 0, sum(len(d.encode()) for d in documents)
    for i in range(0, len(documents), plan.batch):
        ids, mask, labels = batch_of([("", d) for d in documents[i : i + plan.batch]], tokenizer)
        count = int((labels[:, 1:] != IGNORED).sum())
        nats += float(model(input_ids=ids, attention_mask=mask, labels=labels).loss) * count
        tokens += count
    return {"perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / sizes, "tokens": tokens}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    with script():
        main()
