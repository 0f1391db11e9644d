"""Measure at single states how much the divergence to come depends on the next token, and keep a row for every state.

`python benchmarks/turns.py RECIPE --only NAME,… --split valid --states 60 --rows FILE [KEY=VALUE …]` takes the SFT student and the students
that `bench.py` trained. States are drawn evenly from the tokens of the student's own answers. In each one every one of the teacher's K
likeliest tokens is taken, and the student goes on from there S times, as in `lookahead.py`. A row has what is known of the state (position,
entropies, kind of prompt, kind of token) and, for every token and roll-out, the discounted divergence that followed and the number of tokens.
States whose rows stand in ``--rows`` are not played out again, so a measurement that was killed goes on. States come in random order: a
measurement that is stopped early is a fair sample too.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from bench import Bench, check_rows, measured_systems, parser
from futures import Costs, OwnText, Setting, State, futures, pick_states
from gain_estimates import discounted
from told import script
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tdistill.evaluation.answers import Protocol
from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.answers import protocol, sampling_of
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.provenance import provenance
from tdistill.experiment.systems import System, load_own_teacher, load_system
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import bar, say

GAMMAS = (0.5, 0.9, 1.0)
DIGITS = 4
PROMPT_KINDS = {  # by the first word
    "how or why": ("how", "why", "explain", "describe"),
    "question of fact": ("what", "whats", "who", "when", "where", "which", "is", "are", "was", "does", "do", "did", "can"),
    "list or classify": ("list", "name", "give", "classify", "categorize", "identify", "tell", "suggest", "provide", "find", "extract", "from"),
}
OTHER = "other"
ENDS_SENTENCE = re.compile(r"[.!?:]['\")\]]*\s*$|\n\s*$")


def prompt_kind(text: str) -> str:
    """Return the kind of a prompt by its first word."""
    first = re.match(r"\W*(\w+)", text.lower())
    return next((kind for kind, words in PROMPT_KINDS.items() if first and first[1] in words), OTHER)


def token_kind(before: str, piece: str) -> str:
    """Return the kind of the token that comes next: ``before`` is the answer up to it, ``piece`` the teacher's likeliest token."""
    if not before:
        return "starts the answer"
    if before[-1].isalnum() and piece[:1].isalnum():
        return "inside a word"
    if ENDS_SENTENCE.search(before):
        return "starts a sentence"
    return "starts a word" if piece.strip()[:1].isalnum() else "punctuation or end"


def state_row(state: State, shared: Protocol, future: Sequence[Sequence[Costs]]) -> dict[str, Any]:
    """Return the row of one state, without what all states of a student share."""
    prompt, decode = shared.prompts[state.prompt], shared.tokenizer.decode
    answer = state.ids[len(prompt.ids) :]
    return {
        "prompt_id": prompt.prompt.prompt_id,
        "prompt_kind": prompt_kind(prompt.prompt.text),
        "token_kind": token_kind(decode(answer), _piece(shared.tokenizer, answer, int(state.actions[0]))),
        "position": state.position,
        "left": state.left,
        "kl": round(state.kl, DIGITS),
        "teacher_entropy": round(state.entropies[0], DIGITS),
        "student_entropy": round(state.entropies[1], DIGITS),
        "mass": round(state.mass, DIGITS),
        "tokens": [decode([a]) for a in state.actions],
        "probs": [float(f"{p:.{DIGITS}g}") for p in state.probs],
        "student_probs": [float(f"{p:.{DIGITS}g}") for p in state.student_probs],
        "divergence": {f"{g:g}": [[round(discounted(kl, g), DIGITS) for kl, _ in action] for action in future] for g in GAMMAS},
        "length": [[len(kl) for kl, _ in action] for action in future],
    }


def _piece(tokenizer: PreTrainedTokenizerBase, answer: tuple[int, ...], token: int) -> str:
    """Return what a token adds to a text: alone, it may lack the space before it."""
    return tokenizer.decode([*answer, token], skip_special_tokens=True)[len(tokenizer.decode(answer, skip_special_tokens=True)) :]


class Turns:
    """Measure the states of a recipe's students, and keep the rows in a file."""

    def __init__(self, options: argparse.Namespace, experiment: Experiment):
        self.options, self.experiment = options, experiment
        sampling = sampling_of(experiment)
        self.shared = protocol(experiment, options.split, sampling)
        self.settings = {
            "split": options.split,
            "states": options.states,
            "samples": options.samples,
            "actions": options.actions,
            "dtype": experiment.recipe.evaluation.dtype,
            "seed": sampling.seed,
            "max_length": sampling.max_completion_length,
        }
        self.rows = read_jsonl(options.rows) if options.rows.exists() else []
        check_rows(options.rows, self.rows, self.settings)

    def measure(self, system: System, about: dict[str, Any]) -> None:
        """Play out the states of one student that have no row."""
        models, sampling = (load_system(self.experiment, system), load_own_teacher(self.experiment)), self.shared.sampling
        setting = Setting(*models, tuple(self.shared.eos_ids), self.shared.vocab_size, sampling.max_completion_length, sampling.seed)
        states, text = pick_states(setting, list(self.shared.prompts), self.options.states, self.options.actions)
        common = about | self.settings | self._of(text) | {"provenance": provenance(self.experiment.recipe)}
        there = {row["number"] for row in self.rows if row["system"] == about["system"]}
        with bar(about["system"], len(states), "states") as progress:
            for number, state in enumerate(states):
                if number not in there:
                    future = futures(setting, state, number, self.options.samples)
                    self.rows.append({"number": number} | common | state_row(state, self.shared, future))
                    write_jsonl(self.options.rows, self.rows)
                progress.advance(1)
        say(f"{about['system']}: {len(states)} states, of which {len(there)} were there → {self.options.rows}")

    def _of(self, text: OwnText) -> dict[str, float]:
        return {"mean_kl": round(text.mean_kl, DIGITS), "mean_length": round(text.mean_length, DIGITS)}


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--states", type=int, default=60)
    made.add_argument("--actions", type=int, default=6, help="number of the teacher's likeliest tokens tried in a state")
    made.add_argument("--samples", type=int, default=12, help="number of roll-outs after each of them, at least 4")
    options = made.parse_intermixed_args()
    if options.samples < 4 or options.actions < 2 or options.states < 1:
        raise ConfigError(f"--samples {options.samples} --actions {options.actions} --states {options.states}: at least 4, 2 and 1 are needed.")
    return options


def main() -> None:
    options = _options()
    experiment = Bench(options).first
    turns = Turns(options, experiment)
    for system, about in measured_systems(experiment):
        if system.name != TEACHER:
            turns.measure(system, about)


if __name__ == "__main__":
    disable_progress_bar()  # ours are enough
    with script():
        main()
