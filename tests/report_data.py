"""A report like that of a small run: five systems, three runs, 4000 states of teacher text, and hostile answers."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from tdistill.pages.parts import Sample
from tdistill.report.data import Difference, ReportData, Sparsity, StageCost, SystemResult, TrainingCurve
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared

ATTACK = "<script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)> </pre></p>\"&'"
RECIPE = """\
teacher: HuggingFaceTB/SmolLM2-135M-Instruct
student: {prune_layers: 10}
p: 0.9
objective:
  name: iq_learn
  alpha: 10.0  # nats
training: {max_steps: 600, learning_rate: 2.0e-4}
"""


def system(name: str, description: str, parameters: int, layers: int, means: dict[str, float], noise: float = 0.02) -> SystemResult:
    metrics = {metric: Estimate(mean, abs(mean) * noise, 160) for metric, mean in means.items()}
    return SystemResult(name, description, parameters, layers, metrics)


def systems() -> list[SystemResult]:
    keys = ("rouge_l", "teacher_nll", "forward_kl", "reverse_kl", "student_mass", "distinct_2", "mean_length")
    students = {
        "pruned": ("10 of 30 layers, no training", (4.21, 8.93, 9.412, 10.33, 0.112, 0.41, 128.0)),
        "sft": ("NLL on the data, 600 steps at 2e-4", (18.4, 2.21, 0.912, 1.233, 0.8713, 0.83, 71.2)),
        "sft_continued": ("NLL on the data, 1200 steps at 2e-4", (18.9, 2.18, 0.884, 1.194, 0.8799, 0.84, 70.4)),
        "distilled": ("iq_learn, α = 10, 600 steps at 2e-4 from sft", (21.7, 1.43, 0.5127, 0.6021, 0.9412, 0.81, 83.0)),
    }
    teacher = {"rouge_l": 26.3, "teacher_nll": 0.71, "distinct_2": 0.86, "mean_length": 92.5}
    return [
        system("teacher", "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, 30, teacher),
        *(system(name, text, 63_714_240, 10, dict(zip(keys, values, strict=True))) for name, (text, values) in students.items()),
    ]


def curves() -> list[TrainingCurve]:
    rng = np.random.default_rng(0)
    result = []
    for name, scale, keys in (
        ("sft", 3.1, ()),
        ("distilled", 1.7, ("td/reward_mean", "td/v", "td/q", "td/bellman_error")),
        ("iq_learn + reverse_kl", 2.2, ("iq_learn/td/reward", "iq_learn/td/v", "iq_learn/td/q", "iq_learn/td/bellman_error")),
    ):
        records: list[dict[str, float]] = []
        for step in range(1, 601):
            decay = float(np.exp(-step / 150))
            noise = rng.normal(scale=0.05, size=8)
            record = {"step": float(step), "loss": scale * (0.4 + decay) + noise[0]}
            record |= {"grad_norm": float(np.exp(noise[1] * 8)) * (0.5 + 3 * decay), "student_mass": 0.95 - 0.6 * decay}
            record |= {key: (i + 1) * (decay - 0.7) + noise[2 + i] for i, key in enumerate(keys[:3])}
            if keys:
                record[keys[3]] = float(np.exp(noise[6] * 6)) * (0.01 + 20 * decay)
            if step % 100 == 0:
                record |= {"eval_forward_kl": scale * (0.2 + decay), "eval_reverse_kl": scale * (0.3 + decay)}
            records.append(record)
        result.append(TrainingCurve(name, records))
    return result


def sparsity() -> Sparsity:
    rng = np.random.default_rng(1)
    sizes = {p: np.clip(np.exp(rng.normal(mu, s, 4000)), 1, 49152).astype(int) for p, mu, s in _SIZES}
    mass = {1: 0.612, 2: 0.734, 5: 0.846, 10: 0.897, 20: 0.934, 50: 0.966, 100: 0.981, 1000: 0.998}
    return Sparsity(4000, 49_152, mass, {p: s.tolist() for p, s in sizes.items()})


_SIZES = ((0.5, 0.4, 0.7), (0.8, 1.3, 1.2), (0.9, 2.1, 1.6))


def samples() -> list[Sample]:
    poem = "Roses are red,\n    violets are blue,\n\tindented by a tab.\n\n- and a list\n- `with code`\n```\nand a fence\n```"
    sky = "The sky is blue because shorter wavelengths are scattered more strongly by the molecules of the air than longer ones. "
    return [
        Sample(
            "Why is the sky blue?\nAnswer in two sentences.",
            {
                "teacher": sky + "This is called Rayleigh scattering.",
                "pruned": "the the the " * 60,
                "sft": sky * 2,
                "sft_continued": "",
                "distilled": sky + "At sunset the light passes through more air, and red remains.",
            },
        ),
        Sample(
            f"Write a poem about {ATTACK}",
            {
                "teacher": poem,
                "pruned": "x" * 700,
                "sft": ATTACK,
                "sft_continued": "\x1b[31mred\x00 \u202egnp.exe\u202c \ud800 end",
                "distilled": "line\n" * 60,
            },
        ),
    ]


def difference(a: str, b: str, metric: str, mean: float, stderr: float, seeds: int = 1) -> Difference:
    """A difference whose interval and p-value are those of a normal distribution."""
    p = 2 * NormalDist().cdf(-abs(mean) / stderr) if stderr > 0 else float(mean == 0) if stderr == 0 else float("nan")
    return Difference(a, b, metric, Compared(Estimate(mean, stderr, 160), mean - 1.96 * stderr, mean + 1.96 * stderr, p, (seeds, seeds), True))


def differences(seeds: int = 1) -> list[Difference]:
    return [
        difference("distilled", "sft", "rouge_l", 3.3, 0.81, seeds),
        difference("distilled", "sft", "forward_kl", -0.3993, 0.0213, seeds),
        difference("distilled", "sft", "distinct_2", -0.02, 0.004, seeds),
        difference("distilled", "sft_continued", "student_mass", 0.0613, 0.005, seeds),
        difference("sft_continued", "sft", "teacher_nll", -0.03, 0.02, seeds),
        difference("sft", "distilled", "reverse_kl", 0.6309, 0.03, seeds),
    ]


def stages() -> list[StageCost]:
    return [
        StageCost("prune", 3.2, 127_000_000, 900_000_000),
        StageCost("sft", 1450.0, 127_000_000, 3_400_000_000),
        StageCost("rollout", 2711.0, 88_400_000, 2_100_000_000),
        StageCost("train", 4075.0, 127_000_000, 4_200_000_000),
        StageCost("evaluate", 913.0, 2_300_000, 2_000_000_000),
    ]


def report_data() -> ReportData:
    return ReportData(
        title="SmolLM2 135M → 64M: inverse soft Q-learning on the teacher's top-p tokens",
        facts={
            "teacher": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "student": "10 of 30 layers, 63.7M parameters",
            "p": "0.9",
            "seed": "0",
            "versions": "tdistill 0.1.0, torch 2.9.0, transformers 5.23.0",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "machine": "2 cores, 8 GiB",
        },
        protocol="160 held-out prompts, one answer each, sampled at temperature 1 with at most 128 tokens. Standard errors are "
        "over prompts. Divergences are taken on held-out text of the teacher, over the whole vocabulary.",
        systems=systems(),
        differences=differences(),
        curves=curves(),
        sparsity=sparsity(),
        stages=stages(),
        samples=samples(),
        recipe_yaml=RECIPE,
        notes=["Repetition is likely text.", "ROUGE-L rewards <length> as well."],
    )


def bare_data() -> ReportData:
    """One system without standard errors and nothing else."""
    lonely = SystemResult("teacher", "alone", 1000, 2, {"rouge_l": Estimate(26.31, float("nan"), 1)})
    empty = {"differences": [], "curves": [], "sparsity": None, "stages": [], "samples": [], "notes": [], "recipe_yaml": ""}
    return replace(report_data(), systems=[lonely], **empty)


def seeded_data(seeds: tuple[int, ...] = (17, 18, 19)) -> ReportData:
    """The same report of students that were trained with several seeds."""
    pooled = [replace(s, seeds=seeds) if s.name in ("sft_continued", "distilled") else s for s in systems()]
    logged = [TrainingCurve("distilled", curve.records, seed) for seed, curve in zip(seeds, curves(), strict=True)]
    return replace(report_data(), systems=pooled, differences=differences(len(seeds)), curves=[curves()[0], *logged])
