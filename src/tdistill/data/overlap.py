"""Find prompts that stand in more than one set: a test prompt that was trained on must be reported."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from tdistill.data.prompts import Prompt, load_prompts
from tdistill.recipe.schema import DataConfig
from tdistill.runtime.errors import DataError
from tdistill.runtime.progress import say

HELD_OUT = ("valid", "test")

Conversation = tuple[tuple[str, str], ...]


def conversation_key(prompt: Prompt) -> Conversation:
    """Return a prompt's conversation as it is compared: Unicode NFKC, case folded, white space collapsed."""
    return tuple((m["role"], " ".join(unicodedata.normalize("NFKC", m["content"]).casefold().split())) for m in prompt.messages)


def shared_prompts(prompts: Iterable[Prompt], others: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts whose conversation also stands among the others."""
    known = {conversation_key(other) for other in others}
    return [prompt for prompt in prompts if conversation_key(prompt) in known]


def load_split(data: DataConfig, split: str) -> list[Prompt]:
    """Read a prompt set and cut it to its largest size, before prompts that are also in ``train`` are dropped.

    Raises:
        DataError: see ``load_prompts``.
    """
    return load_prompts(getattr(data, split))[: getattr(data, f"max_{split}_prompts")]


def held_out_prompts(data: DataConfig, split: str) -> list[Prompt]:
    """Read a prompt set, and drop the prompts that are also in ``train`` if ``data.overlap`` is ``drop``.

    Raises:
        DataError: the set can't be read, or none of it is left.
    """
    prompts = load_split(data, split)
    if split not in HELD_OUT or data.overlap != "drop":
        return prompts
    known = {conversation_key(p) for p in load_split(data, "train")}
    kept = [p for p in prompts if conversation_key(p) not in known]
    if not kept:
        raise DataError(f"data.overlap: drop leaves none of the {len(prompts)} prompts of {split} ({getattr(data, split)}): all are in train.")
    return kept


def check_overlap(data: DataConfig, sets: Mapping[str, Sequence[Prompt]]) -> None:
    """Compare the prompt sets that ``load_split`` read, and print how many prompts they share.

    Raises:
        DataError: ``data.overlap`` is ``refuse`` and a prompt of ``valid`` or ``test`` is also in ``train``.
    """
    for split in HELD_OUT:
        shared = shared_prompts(sets[split], sets["train"])
        if not shared:
            continue
        found = f"{len(shared)} of {len(sets[split])} prompts of {split} ({getattr(data, split)}) are also in train"
        if data.overlap == "refuse":
            raise DataError(
                f"{found}, such as {shared[0].text!r:.80}: what is measured on them is no result. Give other prompts, or set "
                "data.overlap: drop (leave them out of valid and test) or data.overlap: count (keep them, and say so in the report)."
            )
        say(f"{found}: {'left out' if data.overlap == 'drop' else 'kept and counted'} (data.overlap: {data.overlap})")
    both = shared_prompts(sets["test"], sets["valid"])
    if both:
        say(f"{len(both)} of {len(sets['test'])} prompts of test are also in valid, which chooses checkpoints")
