import pytest
from report_data import difference, differences, sparsity, stages, systems

from tdistill.pages.tables import Table
from tdistill.report.data import Sparsity, SystemResult
from tdistill.report.tables import best_of, comparison_table, format_p, quality_table, sparsity_table, stages_table, verdict
from tdistill.statistics.estimate import Estimate

NAN = float("nan")


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_quality_has_a_row_a_system_and_a_column_a_metric():
    table = quality_table(systems())
    assert table.header[:5] == ["system", "parameters", "layers", "ROUGE-L ↑", "teacher NLL ↓"]
    assert table.header[-2:] == ["distinct-2", "length"]
    assert texts(table)[0] == [
        "teacher",
        "135M",
        "30",
        "26.3 ± 0.5",
        "0.710 ± 0.014",
        "–",
        "–",
        "–",
        "0.860 ± 0.017",
        "92.5 ± 1.9",
    ]
    assert {len(row) for row in table.rows} == {len(table.header)} == {len(table.align)}


def test_only_the_best_student_is_strong_and_only_where_a_direction_is_better():
    table = quality_table(systems())
    strong = {(row[0].text, table.header[i]) for row in table.rows for i, cell in enumerate(row) if cell.strong}
    columns = ("ROUGE-L ↑", "teacher NLL ↓", "forward KL ↓", "reverse KL ↓", "mass on A_p ↑")
    assert strong == {("distilled", column) for column in columns}  # the teacher is better in two of them


def test_a_single_student_is_best_of_nothing_and_ties_are_all_best():
    assert best_of({"teacher": 30.0, "a": 20.0}, "rouge_l") == set()
    assert best_of({"a": 20.0, "b": 20.0, "c": NAN}, "rouge_l") == {"a", "b"}
    assert best_of({"a": 20.0, "b": 21.0}, "forward_kl") == {"a"}
    assert best_of({"a": 20.0, "b": 21.0}, "distinct_2") == set()


def test_metrics_that_nobody_has_get_no_column():
    table = quality_table([SystemResult("teacher", "", 1, 1, {"rouge_l": Estimate(1.0, 0.1, 4), "mean_length": Estimate(NAN, NAN, 0)})])
    assert table.header == ["system", "parameters", "layers", "ROUGE-L ↑"]


@pytest.mark.parametrize(
    ("metric", "mean", "stderr", "expected"),
    [
        ("rouge_l", 2.1, 1.0, "better"),
        ("rouge_l", -2.1, 1.0, "worse"),
        ("forward_kl", -2.1, 1.0, "better"),
        ("forward_kl", 2.1, 1.0, "worse"),
        ("forward_kl", 1.9, 1.0, "no difference"),
        ("forward_kl", 0.0, 0.0, "no difference"),
        ("distinct_2", 2.1, 1.0, "higher"),
        ("distinct_2", -2.1, 1.0, "lower"),
        ("unheard_of", -2.1, 1.0, "lower"),
        ("rouge_l", 2.1, NAN, "–"),
        ("rouge_l", NAN, 1.0, "–"),
    ],
)
def test_the_verdict_follows_the_metric_s_direction_below_p_of_five_percent(metric, mean, stderr, expected):
    assert verdict(difference("a", "b", metric, mean, stderr)).text == expected


def test_comparisons_state_difference_prompts_and_verdict():
    rows = texts(comparison_table(differences()))
    assert rows[0] == ["distilled − sft", "ROUGE-L ↑", "+3.3 ± 0.8", "160", "better"]
    assert rows[1] == ["distilled − sft", "forward KL ↓", "−0.399 ± 0.021", "160", "better"]
    assert [row[-1] for row in rows] == ["better", "better", "lower", "better", "no difference", "worse"]


def test_a_p_value_has_three_decimals_down_to_the_smallest_that_is_shown():
    assert [format_p(p) for p in (0.0321, 0.001, 0.0009, 1.0, NAN)] == ["0.032", "0.001", "< 0.001", "1.000", "–"]


def test_sparsity_quantiles_are_sizes_that_occur():
    table = sparsity_table(Sparsity(4, 100, {}, {0.9: [1, 1, 2, 50], 0.5: [1, 1, 1, 1], 0.8: []}))
    assert texts(table) == [["0.5", "1.0", "1", "1", "1", "1"], ["0.9", "13.5", "1", "50", "50", "50"]]
    assert len(sparsity_table(sparsity()).rows) == 3


def test_stages_end_with_their_total():
    table = stages_table(stages())
    assert [cell.text for cell in table.rows[-1]] == ["total", "2 h 32 min", "449.8 MiB", "3.9 GiB"]
    assert all(cell.strong for cell in table.rows[-1])
