"""Student roll-outs while training: the schedule, what a round records, and a run that is killed and goes on."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset, RunLength
from tdistill.data.prompts import Prompt, TokenizedPrompt, tokenize_prompts
from tdistill.mdp.candidates import Candidates
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.tokenizer import load_tokenizer
from tdistill.objectives import bind
from tdistill.recipe.schema import MethodConfig, OnPolicyConfig, RolloutConfig, ValueConfig
from tdistill.runtime.errors import CacheError, ConfigError
from tdistill.teachers.rollouts import Teacher, roll_out
from tdistill.training.checks import check_training_data
from tdistill.training.fit import fit, training_arguments
from tdistill.training.inputs import FitInputs
from tdistill.training.log import read_history
from tdistill.training.on_policy import Authors, StudentRollouts
from tdistill.training.trainer import DistillTrainer

N_PROMPTS = 10


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Any:
    return load_model(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def expert(teacher: Any, tokenizer: Any, tmp_path_factory: Any) -> RolloutDataset:
    directory = tmp_path_factory.mktemp("rollouts")
    conversations = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}" + "?" * (i % 5)},)) for i in range(N_PROMPTS)]
    prompts, _ = tokenize_prompts(conversations, tokenizer, 128, "refuse")
    rollout = RolloutConfig(teacher_top_p=0.9, max_completion_length=12, seed=1, batch_size=4, shard_batches=1)
    prints = {"teacher": "tiny", "tokenizer": "t", "template": "t"}
    roll_out(Teacher(lambda: teacher, tokenizer, [tokenizer.eos_token_id], prints), prompts, directory, rollout)
    return RolloutDataset(directory)


@pytest.fixture
def student(tiny_teacher: Path) -> Any:
    return prune_layers(load_model(find_model(str(tiny_teacher))), [0, 3]).train()


class Asked:
    """A round's roll-outs are the expert's own rows; what was asked is remembered."""

    def __init__(self, expert: RolloutDataset):
        self.expert, self.rounds = expert, {}

    def __call__(self, index: int, prompts: list[TokenizedPrompt]) -> RolloutDataset:
        self.rounds[index] = [p.prompt.prompt_id for p in prompts]
        return self.expert


def test_the_schedule_mixes_as_told(expert: RolloutDataset) -> None:
    asked = Asked(expert)
    data = MixedDataset(expert, OnPolicyConfig(lmbda=0.4, refresh_steps=10, replay=2), RunLength(100, 8), 0, asked)
    assert len(data) == 800
    assert data._student.mean() == pytest.approx(0.4, abs=4 * (0.24 / 800) ** 0.5)
    seen: Counter[str] = Counter(p for k in range(800) if (p := data.prompt_id(k)) and not data._student[k])
    assert max(seen.values()) - min(seen.values()) <= 1, "the expert's responses are used equally often"
    for r in range(10):
        here = data._student & (data._round == r)
        assert set(data._source[here]) <= {r - 1, r}
        assert len(asked.rounds[r]) == min(-(-int(here.sum()) // 2), N_PROMPTS)
        assert len(set(asked.rounds[r])) == len(asked.rounds[r])
    again = MixedDataset(expert, OnPolicyConfig(lmbda=0.4, refresh_steps=10, replay=2), RunLength(100, 8), 0, asked)
    np.testing.assert_array_equal(again._row, data._row)


def test_a_round_is_asked_for_when_its_time_has_come(expert: RolloutDataset) -> None:
    asked = Asked(expert)
    data = MixedDataset(expert, OnPolicyConfig(lmbda=1.0, refresh_steps=2), RunLength(6, 3), 0, asked)
    for step in range(6):
        for k in range(3 * step, 3 * step + 3):
            assert data[k]["row"] == k
        assert sorted(asked.rounds) == list(range(step // 2 + 1))
    one = Asked(expert)
    data = MixedDataset(expert, OnPolicyConfig(lmbda=1.0), RunLength(6, 3), 0, one)
    assert [data[k]["prompt_id"] for k in range(18)]
    assert list(one.rounds) == [0]
    assert sorted(one.rounds[0]) == sorted(f"p{i}" for i in range(N_PROMPTS)), "at most one response a prompt and round"


def true_logp(model: Any, example: dict[str, Any], vocab: int) -> torch.Tensor:
    """[T, V] log-probs at every step, one forward without padding."""
    ids = torch.tensor(np.concatenate([example["input_ids"], example["response_ids"]]))
    with torch.no_grad():
        logits = model.eval()(ids.unsqueeze(0)).logits[0, len(example["input_ids"]) - 1 : -1, :vocab]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_a_round_records_who_wrote_and_what_the_teacher_thinks(
    mix: float, expert: RolloutDataset, student: Any, teacher: Any, tokenizer: Any, tmp_path: Path
) -> None:
    authors = Authors(student, lambda: teacher, tokenizer, len(tokenizer), torch.float32)
    make = StudentRollouts(authors, expert, tmp_path, OnPolicyConfig(teacher_mix=mix), 5)
    prompts = expert.prompts()[:6]
    data = make(0, prompts)
    assert [data.prompt_id(i) for i in range(6)] != []
    assert data.has_other
    assert not expert.has_other
    for i in range(6):
        example, vocab = data[i], len(tokenizer)
        taken = torch.tensor(example["response_ids"]).unsqueeze(-1)
        mine, theirs = (true_logp(m, example, vocab) for m in (student, teacher))
        mixture = torch.log(mix * theirs.exp() + (1 - mix) * mine.exp())
        torch.testing.assert_close(torch.tensor(example["behaviour_logp"]), mixture.gather(-1, taken).squeeze(-1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(example["teacher_taken_logp"]), theirs.gather(-1, taken).squeeze(-1), atol=1e-4, rtol=1e-4)
        found = Candidates.from_ragged(example["candidates"])
        truth = theirs.gather(-1, found.ids)[found.legal]
        torch.testing.assert_close(found.logp[found.legal], truth, atol=2e-2, rtol=1e-3)
        assert not example["expert"]
    other = make(1, prompts)
    assert [other.text(i) for i in range(6)] != [data.text(i) for i in range(6)], "another round has other noise"
    assert [entry["round"] for entry in make.log] == [0, 1]


def test_of_several_answers_the_one_that_the_teacher_finds_likeliest_per_token_is_kept_as_a_demonstration(
    expert: RolloutDataset, student: Any, teacher: Any, tokenizer: Any, tmp_path: Path
) -> None:
    authors, prompts = Authors(student, lambda: teacher, tokenizer, len(tokenizer), torch.float32), expert.prompts()[:6]
    kept = StudentRollouts(authors, expert, tmp_path / "best", OnPolicyConfig(best_of=3), 5)(1, prompts)
    # Sample i of round r has the noise of number 3·r + i: the three answers are those of rounds 3, 4 and 5 without a choice.
    one = StudentRollouts(authors, expert, tmp_path / "one", OnPolicyConfig(), 5)
    every = [one(r, prompts) for r in (3, 4, 5)]
    assert kept.manifest.settings["origin"] == "selected"
    assert (len(kept), kept.has_other) == (6, False)
    differ = 0
    for example in (kept[i] for i in range(6)):
        found = [e for data in every for e in (data[i] for i in range(6)) if e["prompt_id"] == example["prompt_id"]]
        means = [float(np.mean(e["teacher_taken_logp"])) for e in found]
        best = found[int(np.argmax(means))]
        assert example["response_ids"].tolist() == best["response_ids"].tolist()
        np.testing.assert_allclose(example["behaviour_logp"], best["behaviour_logp"], rtol=1e-4, atol=1e-5)
        assert example["expert"]
        assert not best["expert"]
        differ += len(set(means)) > 1
    assert differ, "the choice chose between different answers"


def test_nll_learns_from_selected_answers_and_not_from_others(
    expert: RolloutDataset, student: Any, teacher: Any, tokenizer: Any, tmp_path: Path
) -> None:
    student.save_pretrained(tmp_path / "start")
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    moved = {}
    for best_of in (1, 2):
        method = MethodConfig(
            objective={"name": "nll"},
            on_policy=OnPolicyConfig(lmbda=1.0, best_of=best_of),
            arguments={"max_steps": 2, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
        )
        directory = tmp_path / f"best-{best_of}"
        fit(FitInputs(tmp_path / "start", expert, expert, tokenizer, len(tokenizer), lambda: teacher, "float32"), method, 3, directory, "t")
        trained = dict(load_model(find_model(str(directory))).named_parameters())
        moved[best_of] = any(not torch.equal(trained[name], p) for name, p in before.items())
    assert moved == {1: False, 2: True}


def test_an_objective_that_needs_steps_of_others_is_refused_on_selected_answers(expert: RolloutDataset) -> None:
    data = MixedDataset(expert, OnPolicyConfig(lmbda=1.0, best_of=2), RunLength(2, 2), 0, Asked(expert))
    assert (data.has_own_text, data.has_other) == (True, False)
    with pytest.raises(ConfigError, match="not the expert's"):
        check_training_data(bind("sqil", other="rollouts"), None, data)


def train(directory: Path, start: Path, expert: RolloutDataset, tokenizer: Any, teacher: Any) -> None:
    method = MethodConfig(
        objective={"name": "csil", "target_network": True, "anchor": "tail"},
        on_policy=OnPolicyConfig(lmbda=0.5, refresh_steps=2),
        value=ValueConfig(target_tau=0.2),
        arguments={
            "max_steps": 6,
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
        },
    )
    fit(FitInputs(start, expert, expert, tokenizer, len(tokenizer), lambda: teacher, "float32"), method, 3, directory, "t")


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a run as Ctrl-C does, in the middle of the step that follows."""
    left, step = iter(range(steps)), DistillTrainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "compute_loss", compute_loss)


def test_a_killed_run_ends_as_one_that_was_not(
    expert: RolloutDataset, student: Any, teacher: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roll-outs, target network, optimizer and data order: bit by bit."""
    student.save_pretrained(tmp_path / "start")
    train(tmp_path / "whole", tmp_path / "start", expert, tokenizer, teacher)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", tmp_path / "start", expert, tokenizer, teacher)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-4").is_dir()
    train(tmp_path / "killed", tmp_path / "start", expert, tokenizer, teacher)
    whole, resumed = (load_model(find_model(str(tmp_path / d))) for d in ("whole", "killed"))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    rounds = read_history(tmp_path / "whole")["rollouts"]
    assert [r["round"] for r in rounds] == [0, 1, 2]
    again = read_history(tmp_path / "killed")["rollouts"]
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in rounds], "those of before the kill are kept"
    texts = [
        [RolloutDataset(tmp_path / d / "rollouts" / f"round-{r:04d}", origins=("student",)).text(0) for r in range(3)]
        for d in ("whole", "killed")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("objective", "arguments"),
    [("sqil", {"other": "rollouts"}), ("ls_iq", {"other": "rollouts"}), ("iq_learn", {"value_term": "value_mix", "phi_on": "all"})],
)
def test_what_needs_steps_of_others_says_so(
    objective: str, arguments: dict[str, Any], expert: RolloutDataset, student: Any, tokenizer: Any, tmp_path: Path
) -> None:
    args = training_arguments({"eval_strategy": "no", "save_strategy": "no"}, tmp_path, seed=0)
    with pytest.raises(ConfigError, match="not the expert's"):
        DistillTrainer(student, args, bind(objective, **arguments), expert, None, tokenizer)


def test_workers_would_roll_out_a_student_of_yesterday(expert: RolloutDataset, student: Any, tokenizer: Any, tmp_path: Path) -> None:
    args = training_arguments({"eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 2}, tmp_path, seed=0)
    data = MixedDataset(expert, OnPolicyConfig(lmbda=0.5), RunLength(2, 4), 0, Asked(expert))
    with pytest.raises(ConfigError, match="got 1 processes and 2 workers"):
        DistillTrainer(student, args, bind("reverse_kl"), data, None, tokenizer)


def test_rounds_of_another_student_in_the_same_directory_are_refused(
    expert: RolloutDataset, student: Any, teacher: Any, tokenizer: Any, tmp_path: Path
) -> None:
    prompts = expert.prompts()[:2]

    def rounds(run: str) -> StudentRollouts:
        authors = Authors(student, lambda: teacher, tokenizer, len(tokenizer), torch.float32)
        return StudentRollouts(authors, expert, tmp_path, OnPolicyConfig(), 5, run)

    first = rounds("a learning rate")(0, prompts)
    assert rounds("a learning rate")(0, prompts).text(0) == first.text(0)
    with pytest.raises(CacheError, match="was made with other settings"):
        rounds("another one")(0, prompts)
