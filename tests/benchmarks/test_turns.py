"""What a perfect critic gains in a state: estimates against enumeration, and against distributions that are known."""

import importlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.pages.svg import plot_file
from tdistill.recipe.schema import Sampling
from tdistill.teachers.transformers import generate_batch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
V, EOS, LENGTH = 4, 0, 4


@pytest.fixture(scope="module")
def scripts():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(BENCHMARKS)
    import futures
    import gain_estimates
    import turns

    yield gain_estimates, futures, turns
    for name in ("gain_estimates", "futures", "turns", "turn_tables", "doc_tables", "bench", "bench_rows", "taken_rollouts", "pooled_methods"):
        sys.modules.pop(name, None)
    patch.undo()


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, initializer_range=0.9, max_position_embeddings=32, **size)).eval()


@pytest.fixture(scope="module")
def pair(scripts):
    _, futures, _ = scripts
    return futures.Setting(tiny_model(0), tiny_model(1), (EOS,), V, LENGTH, seed=3)


@torch.inference_mode()
def divergence_to_come(pair, ids: list[int], left: int, gamma: float) -> float:
    """E Σ γᵏ KL over the student's continuations of up to ``left`` tokens, by enumeration."""
    if left == 0 or ids[-1] == EOS:
        return 0.0
    logq, logp = (m(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for m in (pair.student, pair.teacher))
    later = torch.tensor([divergence_to_come(pair, [*ids, a], left - 1, gamma) for a in range(V)], dtype=torch.double)
    return float(logq.exp() @ (logq - logp + gamma * later))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_gain_from_roll_outs_is_that_of_enumeration(scripts, pair, gamma):
    estimates, futures, _ = scripts
    prompts = [TokenizedPrompt(Prompt(f"p{i}", ()), (1, 2, i)) for i in range(1, V)]
    states, text = futures.pick_states(pair, prompts, 2, actions=3)
    assert 1.0 <= text.mean_length <= LENGTH
    groups, samples = 100, 8
    for number, state in enumerate(states):
        true = np.array([-divergence_to_come(pair, [*state.ids, int(a)], state.left - 1, gamma) for a in state.actions])
        played = futures.futures(pair, state, number, groups * samples)
        g = np.array([[-estimates.discounted(kl, gamma) for kl, _ in action] for action in played])
        error = g.std(axis=1, ddof=1) / g.shape[1] ** 0.5
        assert np.abs(g.mean(1) - true) == pytest.approx(0, abs=4 * error.max() + 1e-6)
        exact = float(estimates.perfect_gain(true, state.probs))
        parts = np.split(g, groups, axis=1)
        jackknifed, halves = ([of(part) for part in parts] for of in (jackknife(estimates, state.probs), half(estimates, state.probs)))
        spans = np.array([estimates.bounds(part, state.probs) for part in parts])
        variance = 0.5 * float(state.probs @ (true - state.probs @ true) ** 2)
        assert exact > 0.0
        for found, wanted in ((jackknifed, exact), (halves, variance)):
            assert np.mean(found) == pytest.approx(wanted, abs=4 * np.std(found) / groups**0.5 + 0.01 * wanted)
        (low, high), slack = spans.mean(0), 4 * spans.std(0).max() / groups**0.5 + 1e-6
        assert low - slack < exact < high + slack
        assert low < high + 1e-9


def jackknife(estimates, probs):
    return lambda part: estimates.jackknifed_gain(part, probs)


def half(estimates, probs):
    return lambda part: estimates.half_gain(part, probs)[0]


def test_a_state_has_both_models_distributions(scripts, pair):
    _, futures, _ = scripts
    prompts = [TokenizedPrompt(Prompt(f"p{i}", ()), (1, 2, i)) for i in range(1, V)]
    (state, *_), _ = futures.pick_states(pair, prompts, 3, actions=V)
    logq, logp = (m(torch.tensor([state.ids])).logits[0, -1].detach().double().log_softmax(-1) for m in (pair.student, pair.teacher))
    assert state.mass == pytest.approx(1.0)
    assert state.probs == pytest.approx(logp.exp().numpy()[state.actions], rel=1e-5)
    assert state.student_probs == pytest.approx(logq.exp().numpy()[state.actions], rel=1e-5)
    assert state.entropies == pytest.approx([float(-(x.exp() @ x)) for x in (logp, logq)], rel=1e-5)
    assert state.kl == pytest.approx(float(logq.exp() @ (logq - logp)), rel=1e-5)
    assert (len(state.ids), state.left) == (3 + state.position, LENGTH - state.position)


def test_a_roll_out_is_the_text_that_the_library_draws_with_its_costs(scripts, pair):
    _, futures, _ = scripts
    prompts = [TokenizedPrompt(Prompt(f"p{i}", ()), (1, 2, i)) for i in range(1, V)]
    long = replace(pair, length=12)
    state = futures.pick_states(long, prompts, 8, actions=V)[0][1]
    sampling = Sampling(max_completion_length=state.left - 1, seed=long.seed + 1)
    lengths = set()
    for action, played in zip(state.actions.tolist(), futures.futures(long, state, 7, 5), strict=True):
        k = state.actions.tolist().index(action)
        if action == EOS:
            assert all(len(kl) == len(logp) == 0 for kl, logp in played)
            continue
        start = TokenizedPrompt(Prompt(f"7-{k}", ()), (*state.ids, action))
        texts = [r.response_ids for r in generate_batch(long.student, [(start, i) for i in range(5)], sampling, long.vocabulary)]
        expected = futures.text_costs(long, [start.ids] * 5, texts)
        for found, wanted, text in zip(played, expected, texts, strict=True):
            assert len(found[0]) == len(text)
            assert found[0] == pytest.approx(wanted[0], abs=1e-4)
            assert found[1] == pytest.approx(wanted[1], abs=1e-4)
            lengths.add(len(text))
    assert len(lengths) > 2


def noisy(rng: np.random.Generator, scale: float, noise: float, samples: int = 12, actions: int = 6):
    """Return roll-outs of a state whose true returns have a scale, the teacher's probabilities, and the true returns."""
    true, probs = scale * rng.standard_normal(actions), rng.dirichlet(np.ones(actions))
    return true[:, None] + noise * rng.standard_normal((actions, samples)), probs, true


def test_a_perfect_critic_is_the_best_of_all(scripts):
    estimates, _, _ = scripts
    returns, probs = np.array([1.0, -2.0, 0.5]), np.array([0.2, 0.5, 0.3])

    def objective(q):
        return q @ returns - q @ np.log(q / probs)

    q = probs * np.exp(returns) / (probs @ np.exp(returns))
    gain = estimates.perfect_gain(returns, probs)
    assert gain == pytest.approx(objective(q) - objective(probs))
    g = np.repeat(returns[:, None], 4, axis=1)
    assert estimates.policy_gain(q, g, probs) == pytest.approx(gain)
    assert estimates.policy_gain(probs, g, probs) == pytest.approx(0.0)
    greedy = np.array([1.0, 0.0, 0.0])
    assert gain - estimates.policy_gain(greedy, g, probs) == pytest.approx(-np.log(q[0]))  # KL(greedy‖q*)
    others = [np.array([a, b, 1 - a - b]) for a, b in itertools.product(np.linspace(0.01, 0.98, 60), repeat=2) if a + b < 0.995]
    assert gain >= max(objective(other) for other in others) - objective(probs)
    assert estimates.perfect_gain(np.array([-700.0, -2000.0, -2000.0]), probs) == pytest.approx(1300 * 0.8 + np.log(0.2))


@pytest.mark.parametrize("scale", [0.0, 0.4, 20.0])
def test_the_jackknife_takes_the_noise_out_of_small_and_large_gains(scripts, scale):
    estimates, _, _ = scripts
    rng, errors, biases, spans = np.random.default_rng(5), [], [], []
    for _ in range(600):
        g, probs, true = noisy(rng, scale, 1.5)
        exact, (low, high) = float(estimates.perfect_gain(true, probs)), estimates.bounds(g, probs)
        errors.append(estimates.jackknifed_gain(g, probs) - exact)
        biases.append(high - exact)
        spans.append((low - exact, high - exact))
    stderr = np.std(errors) / len(errors) ** 0.5
    assert np.mean(errors) == pytest.approx(0.0, abs=3 * stderr + 0.01)
    low, high = np.mean(spans, axis=0)
    assert low - 3 * stderr < 0 < high + 3 * stderr
    if scale < 1:
        assert np.mean(biases) > 5 * stderr  # the plain gain of the means does not


@pytest.mark.parametrize(("share", "noise"), [(0.0, 1.5), (0.25, 1.5), (1.0, 0.5)])
def test_the_share_of_states_with_a_large_gain_is_found_below_the_noise(scripts, share, noise):
    estimates, _, _ = scripts
    rng, levels = np.random.default_rng(1), (0.1, 0.3, 1.0)
    states = [noisy(rng, 2.0 if i < 160 * share else 0.0, noise) for i in range(160)]
    true = np.array([float(estimates.perfect_gain(returns, probs)) for _, probs, returns in states])
    found = estimates.Shrinkage([(g, probs) for g, probs, _ in states], levels)
    for level, shares in zip(levels, found.state_shares().T, strict=True):
        assert shares.mean() == pytest.approx((true > level).mean(), abs=0.04), level
    assert found.state_gains().mean() == pytest.approx(true.mean(), abs=0.03)
    if noise == 1.5:  # without it, noise alone looks like a gain
        raw = np.array([float(estimates.perfect_gain(g.mean(1), probs)) for g, probs, _ in states])
        assert (raw > 0.1).mean() > (true > 0.1).mean() + 0.1


def test_a_state_that_counts_twice_is_as_good_as_two_states(scripts):
    estimates, _, _ = scripts
    rng = np.random.default_rng(2)
    states = [noisy(rng, scale, 1.0)[:2] for scale in (0.0, 0.0, 3.0, 1.0)]
    counts = np.array([1, 2, 0, 3])
    weighed = estimates.Shrinkage(states, (0.3,)).posterior(counts)
    repeated = estimates.Shrinkage([states[i] for i in np.repeat(range(4), counts)], (0.3,)).posterior()
    assert weighed[[0, 1, 3]] == pytest.approx(repeated[[0, 1, 3]])


def test_a_token_that_ends_the_text_has_a_return_without_noise(scripts):
    estimates, _, _ = scripts
    g = np.stack([np.zeros(8), np.arange(8.0)])
    mean, variance = estimates.means_and_variances(g)
    assert mean.tolist() == [0.0, 3.5]
    assert variance == pytest.approx([estimates.EXACT, 6.0 / 8 + estimates.EXACT])


@pytest.mark.parametrize(
    ("before", "piece", "kind"),
    [
        ("", "The", "starts the answer"),
        ("The riv", "er", "inside a word"),
        ("The river", " is", "starts a word"),
        ("The river", ",", "punctuation or end"),
        ("It is green.", " The", "starts a sentence"),
        ('He said "no."', " The", "starts a sentence"),
        ("One:\n", "Two", "starts a sentence"),
        ("It is green", "", "punctuation or end"),
        ("(3", "+", "punctuation or end"),
    ],
)
def test_kinds_of_tokens(scripts, before, piece, kind):
    assert scripts[2].token_kind(before, piece) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Why is the sky blue?", "how or why"),
        ("What’s the capital?", "question of fact"),
        (" 'Who' wrote it", "question of fact"),
        ("List five birds", "list or classify"),
        ("Write a poem", "other"),
        ("12 + 7 =", "other"),
        ("", "other"),
    ],
)
def test_kinds_of_prompts(scripts, text, kind):
    assert scripts[2].prompt_kind(text) == kind


@pytest.fixture(scope="module")
def tables(scripts):
    return importlib.import_module("turn_tables")


def made_row(rng: np.random.Generator, number: int, **changed):
    """Return a row without noise: the tokens' divergences to come are 1 and 4 nats in 2 and 4 tokens, so the gain is known."""
    divergence = {gamma: [[1.0] * 4, [4.0] * 4] for gamma in ("0.5", "0.9", "1")}
    about = {"system": "jsd-5", "number": number, "prompt_id": str(number // 2), "prompt_kind": "other", "token_kind": "starts a word"}
    state = {"position": number, "kl": 0.5, "teacher_entropy": float(rng.random()), "student_entropy": float(rng.random()), "mean_kl": 0.25}
    return about | state | {"probs": [0.5, 0.5], "student_probs": [0.4, 0.4], "divergence": divergence, "length": [[2] * 4, [4] * 4]} | changed


def test_a_table_has_the_gain_of_the_rows(scripts, tables):
    rng = np.random.default_rng(0)
    same = {gamma: [[2.0] * 4, [2.0] * 4] for gamma in ("0.5", "0.9", "1")}
    rows = [made_row(rng, i, **({} if i < 6 else {"divergence": same, "length": [[3] * 4] * 2})) for i in range(12)]
    (line,) = tables.turns_table({"tiny": rows}).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    totals = np.array([[0.25 * 1.5 - 1.0, 0.25 * 1.875 - 4.0]])  # centred, γ = .5: less the mean of as many tokens
    near = float(scripts[0].perfect_gain(totals, np.array([0.5, 0.5]))[0]) / 2
    assert cells[:2] == ["tiny, `jsd`", "12"]
    assert cells[2].startswith(f"{near:.2f} ± 0.")
    assert near > 0.1
    assert cells[3] == cells[5]  # the student is a perfect clone here: it leaves all of the gain
    assert cells[4] == "50 ± 20 %"  # a half of the states, by a bootstrap of the six prompts


def test_a_group_of_states_has_its_own_gain(tables):
    rng = np.random.default_rng(0)
    easy = {gamma: [[0.0] * 4, [9.0] * 4] for gamma in ("0.5", "0.9", "1")}
    rows = [
        made_row(rng, i, token_kind="inside a word" if i % 2 else "starts a word", **({"divergence": easy} if i % 2 else {})) for i in range(12)
    ]
    lines = {line.split("|")[1].strip(): line.split("|") for line in tables.kinds_table(rows).splitlines()[2:]}
    assert list(lines)[:4] == ["all", "position ≤ 4", "position to 7", "position > 7"]
    assert [int(lines[name][2]) for name in list(lines)[:4]] == [12, 4, 4, 4]
    spreads = {name: float(lines[name][3]) for name in ("inside a word", "starts a word")}
    assert spreads["inside a word"] == pytest.approx(4.5, abs=0.4)
    assert spreads["starts a word"] == pytest.approx(1.3, abs=0.05)
    assert lines["inside a word"][5].strip() == "100 ± 0 %"


def test_a_return_is_centred_by_the_mean_of_as_many_tokens(tables):
    row = made_row(np.random.default_rng(0), 0)
    assert tables.state_returns(row, 1.0, centred=False)[:, 0].tolist() == [-1.0, -4.0]
    assert tables.state_returns(row, 1.0, centred=True)[:, 0].tolist() == [-0.5, -3.0]
    assert tables.state_returns(row, 0.5, centred=True)[:, 0] == pytest.approx([0.25 * 1.5 - 1.0, 0.25 * 1.875 - 4.0])


def test_a_figure_shows_every_pair(tables):
    rng = np.random.default_rng(0)
    plot = tables.turns_plot({name: [made_row(rng, i) for i in range(6)] for name in ("text", "steps")})
    assert [line.name for line in plot.legend] == ["text", "steps", "by the teacher's entropy", "by position"]
    assert [("text" in panel.description, "steps" in panel.description) for panel in plot.panels] == [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert plot_file(plot).count("low") == 2


def test_thirds_of_states_of_which_many_are_equal_keep_their_places(tables):
    entropies = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.9])
    assert {name: chosen.sum() for name, chosen in tables.thirds("entropy", entropies).items()} == {
        "entropy ≤ 0": 5,
        "entropy to 0": 0,
        "entropy > 0": 1,
    }
    rng = np.random.default_rng(0)
    rows = [made_row(rng, i, teacher_entropy=entropy) for i, entropy in enumerate(entropies)]
    assert "teacher's entropy to 0" not in tables.groups(rows)
    (_, panel) = tables.turns_plot({"steps": rows}).panels
    assert "≤ 0 " in panel.description
    assert "> 0 " in panel.description
    assert "to 0 " not in panel.description
