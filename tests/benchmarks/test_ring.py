"""World 0: its checker, its exact measures against the enumeration of every text, its optimum, its students and its sweeps."""

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.objectives import bind
from tdistill.pages.document import write_document
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import read_jsonl

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
NAMES = ("ring_world", "ring_student", "ring_training", "ring_bench", "ring_pages", "ring_demo", "doc_tables")
CRITIC = {"name": "actor_critic", "gamma": 0.99, "center": 0.0, "rho_max": math.inf}


@pytest.fixture(scope="module")
def ring():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(STEPS)
    patch.syspath_prepend(STEPS.parent)
    import ring_bench
    import ring_demo
    import ring_student
    import ring_training
    import ring_world

    yield SimpleNamespace(world=ring_world, student=ring_student, training=ring_training, bench=ring_bench, demo=ring_demo)
    for name in NAMES:
        sys.modules.pop(name, None)
    patch.undo()


@pytest.fixture(scope="module")
def small(ring):
    """A world that is small enough to write down all its texts, and a policy that is not the teacher's."""
    sizes = ring.world.Ring(steps=2, symbols=3, keys=2, easy_share=0.3, right=0.9)
    right = ring.world.right_symbols(sizes, [5])
    teacher = ring.world.teacher_table(sizes, right)
    policy = (teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    return sizes, right, teacher, policy


def walk(ring, sizes, table, key, symbol, text):
    """Return the log-prob of every token of a text, by following its states one by one."""
    found, kind = [], ring.world.WAY
    for t, token in enumerate(text):
        found.append(float(table[t // 2][key, symbol, kind, token] if isinstance(table, list) else table[key, symbol, kind, token]))
        if t % 2:
            symbol, kind = (token if token < sizes.symbols else symbol), ring.world.WAY
        else:
            kind = ring.world.AFTER_HARD if token == sizes.symbols + 1 else ring.world.AFTER_EASY
    return found


def texts_of(sizes):
    return itertools.product(range(sizes.vocab), repeat=sizes.tokens)


def test_measures_equal_the_enumeration_of_every_text(ring, small) -> None:
    sizes, right, teacher, policy = small
    sampled = kl = easy = steps = 0.0
    for key, symbol in itertools.product(range(sizes.keys), range(sizes.symbols)):
        for text in texts_of(sizes):
            logq, logp = (sum(walk(ring, sizes, table[0], key, symbol, text)) for table in (policy, teacher))
            q = math.exp(logq) / (sizes.keys * sizes.symbols)
            sampled += q * ring.world.check_text(sizes, right[0], key, symbol, list(text))
            kl += q * (logq - logp)
            easy += q * sum(token == sizes.symbols for token in text[::2]) / sizes.steps
            here = symbol
            for way, token in zip(text[::2], text[1::2], strict=True):
                steps += q * (way >= sizes.symbols and token == int(right[0, key, here, way - sizes.symbols])) / sizes.steps
                here = token if token < sizes.symbols else here
    found = ring.world.measure(sizes, policy, teacher, right)
    wanted = {"sampled": sampled, "kl": kl, "easy_share": easy, "right_steps": steps}
    assert {name: float(getattr(found, name)[0]) for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_greedy_accuracy_is_the_share_of_starts_whose_likeliest_tokens_are_right(ring, small) -> None:
    sizes, right, teacher, policy = small
    good = 0
    for key, symbol in itertools.product(range(sizes.keys), range(sizes.symbols)):
        text: list[int] = []
        for _ in range(sizes.tokens):
            text.append(max(range(sizes.vocab), key=lambda token, t=tuple(text): walk(ring, sizes, policy[0], key, symbol, [*t, token])[-1]))
        good += ring.world.check_text(sizes, right[0], key, symbol, text)
    assert float(ring.world.measure(sizes, policy, teacher, right).greedy[0]) == pytest.approx(good / (sizes.keys * sizes.symbols))
    assert float(ring.world.measure(sizes, teacher, teacher, right).greedy[0]) == 1.0


def test_the_best_ways_reach_the_least_divergence_of_all_policies_with_these_symbols(ring, small) -> None:
    sizes, _, teacher, policy = small
    least, ways = ring.world.best_ways(sizes, policy, teacher)

    def divergence(chosen) -> float:
        total = 0.0
        for key, symbol in itertools.product(range(sizes.keys), range(sizes.symbols)):
            tables = []
            for step in range(sizes.steps):
                table = policy[0].double().clone()
                table[:, :, ring.world.WAY, :] = chosen[step, 0]
                tables.append(table)
            for text in texts_of(sizes):
                logq, logp = (sum(walk(ring, sizes, t, key, symbol, text)) for t in (tables, teacher[0]))
                total += math.exp(logq) * (logq - logp) / (sizes.keys * sizes.symbols)
        return total

    assert divergence(ways) == pytest.approx(float(least[0]), rel=1e-5)
    for seed in range(3):
        noise = 0.1 * torch.randn(ways.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        assert divergence((ways + noise).log_softmax(-1)) > float(least[0])


def test_a_student_that_can_do_only_the_easy_way_pays_its_share(ring) -> None:
    """With perfect symbols by the easy way and none by the hard one the optimum is H·(−log share), and the critic's ways take the easy one."""
    sizes = ring.world.Ring(steps=4, symbols=8, keys=2, easy_share=0.25)
    right = ring.world.right_symbols(sizes, [0])
    teacher = ring.world.teacher_table(sizes, right)
    student = teacher.clone()
    student[..., ring.world.AFTER_HARD, :] = -math.log(sizes.vocab)
    least, ways = ring.world.best_ways(sizes, student, teacher)
    hard_cost = float((student[0, 0, 0, 2].exp() * (student - teacher)[0, 0, 0, 2]).sum())
    one_step = -math.log(0.25 + 0.75 * math.exp(-hard_cost))
    assert float(least[0]) == pytest.approx(sizes.steps * one_step, rel=1e-4)
    assert float(least[0]) < ring.world.easy_optimum(sizes)
    assert (ways[..., sizes.symbols].exp() > 0.8).all()


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 5), keys=st.integers(1, 4), symbols=st.integers(2, 9), seed=st.integers(0, 99), data=st.data())
def test_the_checker_passes_right_texts_and_no_altered_ones(ring, steps, keys, symbols, seed, data) -> None:
    sizes = ring.world.Ring(steps=steps, symbols=symbols, keys=keys)
    right = ring.world.right_symbols(sizes, [seed])[0]
    key, start = data.draw(st.integers(0, keys - 1)), data.draw(st.integers(0, symbols - 1))
    text, symbol = [], start
    for _ in range(steps):
        way = data.draw(st.integers(0, 1))
        symbol = int(right[key, symbol, way])
        text += [symbols + way, symbol]
    assert ring.world.check_text(sizes, right, key, start, text)
    place = 2 * data.draw(st.integers(0, steps - 1)) + 1
    wrong = data.draw(st.integers(0, symbols + 1).filter(lambda token: token != text[place]))
    assert not ring.world.check_text(sizes, right, key, start, [*text[:place], wrong, *text[place + 1 :]])
    assert not ring.world.check_text(sizes, right, key, start, text[:-2])
    assert not ring.world.check_text(sizes, right, key, start, [*text, *text[-2:]])
    assert not ring.world.check_text(sizes, right, key, start, [0, *text[1:]])


def test_sampled_texts_follow_the_policy(ring) -> None:
    sizes = ring.world.Ring(steps=3, symbols=8, keys=2, easy_share=0.2, right=0.9)
    right = ring.world.right_symbols(sizes, [1, 2])
    teacher = ring.world.teacher_table(sizes, right)
    count = 4000
    texts = ring.world.sample_texts(sizes, ring.world.table_policy(teacher), (2, count), torch.Generator().manual_seed(0))
    for s in range(2):
        rows = zip(texts.key[s].tolist(), texts.symbol_t[s, :, 0].tolist(), texts.token_t[s].tolist(), strict=True)
        share = sum(ring.world.check_text(sizes, right[s], *row) for row in rows) / count
        assert share == pytest.approx(0.9**3, abs=4 * math.sqrt(0.25 / count))
        first = walk(ring, sizes, teacher[s], int(texts.key[s, 0]), int(texts.symbol_t[s, 0, 0]), texts.token_t[s, 0].tolist())
        assert texts.logp_t[s, 0].tolist() == pytest.approx(first)
    assert (texts.token_t[..., ::2] == sizes.symbols).float().mean() == pytest.approx(0.2, abs=0.02)


def test_steps_hold_what_the_teacher_and_the_student_say_of_every_token(ring) -> None:
    sizes = ring.world.Ring(steps=2, symbols=6, keys=2, easy_share=0.1)
    world = ring.student.World(sizes, (3, 4), top_p=0.8)
    students = ring.student.Students(sizes, 8, [3, 4])
    texts = ring.world.sample_texts(sizes, ring.world.table_policy(world.teacher), (2, 5), torch.Generator().manual_seed(0))
    needs = bind("actor_critic").needs | bind("mean_actor_critic").needs | bind("nll").needs | {"max"}
    with torch.no_grad():
        steps, table = world.steps(students, texts, needs, torch.ones(5, dtype=torch.bool)), students.table(sizes)
    assert steps.legal_t.sum(-1).unique().tolist() == [1], "the hard way alone, and the right symbol alone"
    for s, b, t in itertools.product(range(2), range(5), range(4)):
        state = (s, int(texts.key[s, b]), int(texts.symbol_t[s, b, t]), int(texts.kind_t[s, b, t]))
        token, row = int(texts.token_t[s, b, t]), 5 * s + b
        assert float(steps.taken_logit_t[row, t] - steps.log_z_t[row, t]) == pytest.approx(float(table[(*state, token)]), abs=1e-5)
        assert float(steps.teacher_taken_logp_t[row, t]) == float(world.teacher[(*state, token)]) == float(steps.behaviour_logp_t[row, t])
        on_support = token == int(world.teacher[state].argmax())
        assert int(steps.a_t[row, t]) == (0 if on_support else -1)
    assert steps.terminal_t.nonzero()[:, 1].unique().tolist() == [3]


def test_students_of_one_run_do_not_disturb_each_other(ring) -> None:
    """The gradient of a student is the same alone and beside another one, and both start as they do alone."""
    sizes = ring.world.Ring(steps=2, symbols=6, keys=2)
    objective = bind(CRITIC)

    def gradient(seeds, texts):
        students, world = ring.student.Students(sizes, 8, seeds), ring.student.World(sizes, tuple(seeds))
        with torch.no_grad():
            students.value.fill_(0.1)
        loss_t = objective(world.steps(students, texts, objective.needs, torch.ones(4, dtype=torch.bool))).loss_t
        (100.0 * loss_t.sum()).backward()
        ring.training.clip_each(students.body)
        return {name: p.grad[0] for name, p in students.named_parameters() if p.grad is not None}

    world = ring.student.World(sizes, (3, 4))
    both = ring.world.sample_texts(sizes, ring.world.table_policy(world.teacher), (2, 4), torch.Generator().manual_seed(0))
    alone = ring.world.Texts(*(x[:1] for x in (both.key, both.symbol_t, both.kind_t, both.token_t, both.logp_t)))
    one, two = gradient([3], alone), gradient([3, 4], both)
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    body = [g for name, g in one.items() if name not in ("value", "value_bias", "action_value")]
    assert math.sqrt(sum(float(g.square().sum()) for g in body)) == pytest.approx(1.0, rel=1e-4)


def test_looking_ahead_takes_the_way_that_the_student_can_go_and_cloning_does_not(ring) -> None:
    setting = ring.training.Setting(ring.world.Ring(steps=6, symbols=24, keys=32), width=28, sft_steps=300, train_steps=300, batch=32)
    start, found = ring.training.run_sft(setting, [0, 1]), {}
    world = ring.student.World(setting.ring, (0, 1))
    for name, method in {
        "jsd": ring.training.Method({"name": "jsd"}),
        "actor_critic": ring.training.Method(CRITIC, text="own", warmup_steps=50),
    }.items():
        students = ring.student.Students(setting.ring, 28, [0, 1])
        students.load_state_dict(start.state_dict())
        *_, found[name] = ring.training.train(students, world, setting, method, 1e-2, setting.train_steps)
    assert (found["jsd"].measured.greedy < 0.4).all()
    assert (found["actor_critic"].measured.greedy > 0.9).all()
    assert (found["actor_critic"].measured.kl < found["jsd"].measured.kl).all()


def test_rejection_sampling_imitates_the_text_that_the_teacher_finds_likeliest(ring) -> None:
    setting = ring.training.Setting(ring.world.Ring(steps=3, symbols=6, keys=2), width=8, batch=16)
    world, students = ring.student.World(setting.ring, (0, 1)), ring.student.Students(setting.ring, 8, [0, 1])

    def likelihood(best_of: int) -> tuple[float, torch.Tensor]:
        method = ring.training.Method({"name": "nll"}, text="own", best_of=best_of)
        texts, expert = ring.training.TextSource(world, setting, method, torch.Generator().manual_seed(0)).draw(students)
        assert texts.key.shape == (2, 16)
        return float(world.steps(students, texts, frozenset(), expert).teacher_taken_logp_t.sum(-1).mean()), expert

    (plain, own), (best, expert) = likelihood(1), likelihood(8)
    assert best > plain + 1.0
    assert not own.any()
    assert expert.all(), "nll leaves out steps that are not to be imitated"


def test_own_text_after_teacher_text_in_a_mixed_batch_is_told_apart(ring) -> None:
    setting = ring.training.Setting(ring.world.Ring(steps=2, symbols=6, keys=2), width=8, batch=10, texts=7)
    world, students = ring.student.World(setting.ring, (0,)), ring.student.Students(setting.ring, 8, [0])
    source = ring.training.TextSource(world, setting, ring.training.Method({"name": "jsd"}, text="mixed"), torch.Generator().manual_seed(0))
    texts, expert = source.draw(students)
    assert expert.tolist() == [False] * 5 + [True] * 5
    pool = {tuple(row) for row in source.pool.token_t[0].tolist()}
    assert {tuple(row) for row in texts.token_t[0, 5:].tolist()} <= pool


PLAN = """
methods:
  jsd: {objective: {name: jsd}}
  critic: {objective: {name: actor_critic, gamma: 0.9, rho_max: .inf}, warmup_steps: 2}
sweeps:
  rates:
    vary: {rate: [1.0e-3, 1.0e-2]}
    setting: &tiny {ring: {steps: 2, symbols: 6, keys: 2}, sft_steps: 3, train_steps: 4, batch: 4, width: 8}
    seeds: [[100]]
  gamma: {vary: {method.objective.gamma: [0.0, 0.9]}, methods: [critic], setting: *tiny, seeds: [[0, 1], [2]]}
  other_rates: {vary: {rate: [3.0e-4]}, methods: [critic], setting: *tiny, seeds: [[100]]}
  other: {methods: [critic], setting: *tiny, seeds: [[0]], rates: other_rates}
"""


def test_a_sweep_goes_on_where_it_was_stopped_and_its_rows_say_what_they_are(ring, tmp_path, monkeypatch) -> None:
    plan, rows = yaml.safe_load(PLAN), tmp_path / "rows.jsonl.xz"
    with pytest.raises(ConfigError, match="critic has no learning rate: run the sweep 'rates' first"):
        ring.bench.run_sweep("gamma", plan, rows)
    with pytest.raises(ConfigError, match="no sweep 'gama'. Did you mean 'gamma'"):
        ring.bench.run_sweep("gama", plan, rows)
    ring.bench.run_sweep("rates", plan, rows, only={"jsd"})
    ring.bench.run_sweep("rates", plan, rows)
    assert set(ring.bench.chosen_rates(read_jsonl(rows))) == {"jsd", "critic"}
    made = ring.bench.run_sweep("gamma", plan, rows)
    assert made == read_jsonl(rows)
    own = [row for row in made if row["sweep"] == "gamma"]
    assert [(row["method"], row["seed"]) for row in own] == [("sft", 0), ("sft", 1), ("critic", 0), ("critic", 1), ("sft", 2)] + [
        ("critic", seed) for seed in (2, 0, 1, 2)
    ]
    assert {row["method_settings"]["objective"]["gamma"] for row in own if row["method"] == "critic"} == {0.0, 0.9}
    with pytest.raises(ConfigError, match="run the sweep 'other_rates' first"):
        ring.bench.run_sweep("other", plan, rows)
    ring.bench.run_sweep("other_rates", plan, rows)
    assert {row["rate"] for row in ring.bench.run_sweep("other", plan, rows) if row["sweep"] == "other" and row["method"] != "sft"} == {3e-4}
    made = read_jsonl(rows)
    monkeypatch.setattr(ring.bench, "train", lambda *_: pytest.fail("it is complete"))
    assert ring.bench.run_sweep("gamma", plan, rows) == made


def test_the_demo_writes_a_page_that_says_what_its_students_can_do(ring, tmp_path) -> None:
    plan = yaml.safe_load((STEPS / "ring.yaml").read_text())
    demo = plan["sweeps"]["demo"]
    demo["vary"]["setting.ring.steps"] = [1, 3]
    demo["setting"] = {"ring": {"symbols": 6, "keys": 2}, "sft_steps": 3, "train_steps": 4, "batch": 4, "width": 8}
    rows = ring.bench.run_sweep("demo", plan, tmp_path / "rows.jsonl", rates=dict.fromkeys(plan["methods"], 1e-3))
    made = ring.demo.document(rows, {"time": "1 s"})
    (section,) = made.sections
    claim, table, plot = section.parts
    ahead = [row["greedy"] for row in rows if row["method"] == "actor_critic_own" and row["setting"]["ring"]["steps"] == 3]
    assert f"With 3 steps the student that looks ahead is right in {sum(ahead) / 2:.0%} of its texts" in claim
    assert table.header == ["method", "H = 1", "H = 3"]
    assert [row[0].text for row in table.rows] == ["jsd, teacher's text", "reverse KL, own text", "actor_critic, own text"]
    _, page = write_document(tmp_path / "page", "steps", made)
    assert "<svg" in page.read_text(encoding="utf-8")
    assert len(plot.panels) == 2
    assert table.terminal


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"keys": 0}, {"symbols": 1}, {"easy_share": 0.0}, {"right": 1.0}])
def test_sizes_that_make_no_world_are_refused(ring, wrong) -> None:
    with pytest.raises(ConfigError, match="got"):
        ring.world.Ring(**wrong)


def test_every_sweep_of_the_plan_can_be_laid_out(ring) -> None:
    plan = yaml.safe_load((STEPS / "ring.yaml").read_text())
    rates = dict.fromkeys(plan["methods"], 1e-3)
    for sweep in plan["sweeps"]:
        laid = list(ring.bench.jobs(sweep, plan, rates))
        assert len({str(job.about) for job in laid}) == len(laid) > 0
        for job in laid:
            bind(job.method.objective)
