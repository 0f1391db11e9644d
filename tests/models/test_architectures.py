"""The architectures of the paper's pairs: padding moves no logit, tied heads are saved and read back, values fit the hidden state."""

from pathlib import Path

import pytest
import torch
from conftest import EOS, save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.models.layout import left_pad, pad_pairs
from tdistill.models.student import StudentModel
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import ActionSpace, Sampling
from tdistill.teachers.transformers import generate_batch, score_batch

TOKENS, ROWS = 257, 304  # bytes and an end-of-text token; the rows beyond are padding, as the real checkpoints have it
ROUNDING = 2e-5  # float32 logits move with the shape of a batch
ARCHITECTURES = ("gpt2", "opt", "opt-350m", "qwen2", "qwen2-untied")


def config_of(architecture: str, layers: int, width: int) -> PreTrainedConfig:
    """``opt-350m`` is OPT as its 350M checkpoint has it: norms after the blocks, embeddings narrower than the hidden state."""
    ends = {"bos_token_id": None, "eos_token_id": TOKENS - 1, "pad_token_id": TOKENS - 1}
    if architecture == "gpt2":
        return GPT2Config(vocab_size=ROWS, n_positions=256, n_embd=width, n_layer=layers, n_head=2, initializer_range=0.15, **ends)
    shape = {"vocab_size": ROWS, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": 256}
    if architecture.startswith("qwen2"):
        tied = architecture == "qwen2"
        return Qwen2Config(intermediate_size=48, num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.15, **shape, **ends)
    narrow = (
        {"word_embed_proj_dim": width // 2, "do_layer_norm_before": False} if architecture == "opt-350m" else {"word_embed_proj_dim": width}
    )
    return OPTConfig(ffn_dim=48, init_std=0.15, **narrow, **shape, **(ends | {"pad_token_id": 1}))


def tiny_model(architecture: str, layers: int = 2, width: int = 16, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(architecture, layers, width)).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1: then a wrong one would go unseen
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_tiny(architecture: str, directory: Path, layers: int, width: int, seed: int) -> Path:
    """A model with conftest's byte-level tokenizer."""
    save_tiny_model(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_tokens_to_ids(EOS) == TOKENS - 1
    tiny_model(architecture, layers, width, seed).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request) -> PreTrainedModel:
    return tiny_model(request.param)


def tokenized(length: int, seed: int) -> TokenizedPrompt:
    ids = torch.randint(0, TOKENS - 1, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return TokenizedPrompt(Prompt(f"prompt-{seed}", ({"role": "user", "content": "?"},)), tuple(ids))


SHORT, LONG = tokenized(3, seed=1), tokenized(19, seed=2)
ANSWERS = ([5, 9, 200, 31, TOKENS - 1], [7] * 11)  # of SHORT and of LONG: so SHORT is padded on both sides


def student_logits(
    student: StudentModel, prompts: list[TokenizedPrompt], answers: list[list[int]], needs: frozenset[str] = frozenset()
) -> dict:
    inputs, attention, taken, _ = pad_pairs([p.ids for p in prompts], answers)
    with torch.no_grad():
        return student(inputs, attention, taken, needs=needs, vocab_size=TOKENS)


NEEDS = frozenset({"value", "action_value", "log_z"})


def with_values(model) -> StudentModel:
    student = StudentModel.for_needs(model, NEEDS)
    for parameter in student.value_head.parameters():
        torch.nn.init.normal_(parameter)
    return student


def test_padding_does_not_move_the_students_logits_and_values(model):
    student = with_values(model)
    both = student_logits(student, [SHORT, LONG], list(ANSWERS), NEEDS)
    for row, (prompt, answer) in enumerate(zip((SHORT, LONG), ANSWERS, strict=True)):
        alone = student_logits(student, [prompt], [answer], NEEDS)
        for field in ("q_t", "value_t", "action_value_t", "log_z_t"):
            torch.testing.assert_close(both[field][row, : len(answer)], alone[field][0], atol=ROUNDING, rtol=ROUNDING)
    assert both["q_t"].shape[-1] == both["action_value_t"].shape[-1] == TOKENS


def test_the_value_of_a_token_is_the_states_and_what_its_embedding_adds(model):
    student = with_values(model)
    inputs, attention, taken, _ = pad_pairs([SHORT.ids], [ANSWERS[0]])
    ids = torch.tensor([[[3, 9], [200, 0], [1, 2], [TOKENS - 1, 5], [7, 7]]])
    with torch.no_grad():
        hidden = model(inputs, attention_mask=attention, output_hidden_states=True).hidden_states[-1][:, -taken.shape[1] :]
        out = student(inputs, attention, taken, candidate_ids=ids, needs=NEEDS)
    head, embeddings = student.value_head, model.get_output_embeddings().weight
    for t, row in enumerate(ids[0].tolist()):
        for k, token in enumerate(row):
            own = head.state(hidden[0, t]) + head.action(hidden[0, t]) @ embeddings[token] / embeddings.shape[-1]
            torch.testing.assert_close(out["action_value_t"][0, t, k], own[0].detach(), atol=1e-4, rtol=1e-4)


def test_the_students_logits_are_the_models_own(model):
    ids = torch.tensor([[*SHORT.ids, *ANSWERS[0][:-1]]])
    with torch.no_grad():
        plain: Tensor = model(ids).logits[:, len(SHORT.ids) - 1 :, :TOKENS]
    torch.testing.assert_close(student_logits(StudentModel(model), [SHORT], [ANSWERS[0]])["q_t"], plain, atol=ROUNDING, rtol=ROUNDING)


def test_without_its_positions_padding_would_move_gpt2():
    model = tiny_model("gpt2")
    ids, mask = left_pad([SHORT.ids, LONG.ids])
    with torch.no_grad():
        moved = model(input_ids=ids, attention_mask=mask).logits[0, -1] - model(torch.tensor([SHORT.ids])).logits[0, -1]
    assert moved.abs().max() > 100 * ROUNDING


SPACE = ActionSpace(teacher_top_p=0.9)


def candidate_sets(row):
    return [set(state.ids.tolist()) for state in row.candidates.split()]


def test_scoring_pads_as_if_alone(model):
    both = score_batch(model, [(SHORT, ANSWERS[0]), (LONG, ANSWERS[1])], Vocabulary(TOKENS, [TOKENS - 1]), SPACE)
    for row, pair in zip(both, ((SHORT, ANSWERS[0]), (LONG, ANSWERS[1])), strict=True):
        (alone,) = score_batch(model, [pair], Vocabulary(TOKENS, [TOKENS - 1]), SPACE)
        assert row.token_logp == pytest.approx(alone.token_logp, abs=ROUNDING)
        assert candidate_sets(row) == candidate_sets(alone)


def test_generation_pads_as_if_alone_and_scoring_agrees_with_it(model):
    sampling, vocabulary = Sampling(top_p=0.9, max_completion_length=12, seed=4), Vocabulary(TOKENS, range(0, TOKENS, 12))
    prompts = [SHORT, LONG, tokenized(7, seed=3), tokenized(12, seed=4)]
    rows = generate_batch(model, [(p, 0) for p in prompts], sampling, vocabulary, SPACE)
    assert len({len(row.response_ids) for row in rows}) > 1, "some must end early and leave the batch"
    for row, prompt in zip(rows, prompts, strict=True):
        (alone,) = generate_batch(model, [(prompt, 0)], sampling, vocabulary, SPACE)
        (scored,) = score_batch(model, [(prompt, row.response_ids)], vocabulary, SPACE)
        assert row.response_ids == alone.response_ids
        assert max(row.response_ids) < TOKENS
        assert row.token_logp == pytest.approx(alone.token_logp, abs=ROUNDING)
        assert row.token_logp == pytest.approx(scored.token_logp, abs=ROUNDING)
        assert candidate_sets(row) == candidate_sets(scored)


@pytest.mark.parametrize("gathered", [False, True], ids=["own state", "state given"])
def test_a_saved_student_is_read_back(model, gathered, tmp_path):
    student = with_values(model)
    student.save_pretrained(tmp_path, student.state_dict() if gathered else None)
    wanted = student_logits(student, [SHORT], [ANSWERS[0]], NEEDS)
    other = StudentModel.for_needs(AutoModelForCausalLM.from_config(model.config).eval(), NEEDS)
    other.load_weights(tmp_path)
    loaded = StudentModel(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    for name, found in {"in place": other, "anew": loaded}.items():
        needs = NEEDS if name == "in place" else frozenset()
        out = student_logits(found, [SHORT], [ANSWERS[0]], needs)
        for field in out:
            torch.testing.assert_close(out[field], wanted[field], msg=f"{name}: {field}")
    heads = [m.get_output_embeddings().weight.data_ptr() == m.get_input_embeddings().weight.data_ptr() for m in (model, other.lm, loaded.lm)]
    assert len(set(heads)) == 1, "tied before, tied after"
