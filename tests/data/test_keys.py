"""Keys of data: of the content as it is used, wherever it lies and however it is stored."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdistill.data.corpus import corpus_key
from tdistill.data.prompts import load_prompts, prompt_set_key

RECORDS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(3)]
DOCUMENTS = ["One document.", "Another one,\nof two lines.", "The third."]


def written(path: Path, records: list[dict]) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = "".join(json.dumps(r) + "\n" for r in records)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(records) if path.suffix == ".json" else lines)
    return str(path)


def key(source: str, with_references: bool = True) -> str:
    return prompt_set_key(load_prompts(source), with_references)


@pytest.mark.parametrize("name", ["else/where.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_the_key_of_a_prompt_set_knows_no_path_and_no_format(tmp_path, name):
    want = key(written(tmp_path / "plain.jsonl", RECORDS))
    turned = [dict(reversed(r.items())) for r in RECORDS]
    assert key(written(tmp_path / name, RECORDS)) == key(written(tmp_path / "turned.jsonl", turned)) == want


@pytest.mark.parametrize(
    "changed",
    [RECORDS[:2], RECORDS[::-1], [*RECORDS, RECORDS[0]], [{"prompt": "question 0!", "completion": "answer 0"}, *RECORDS[1:]]],
    ids=["one less", "another order", "one twice", "another text"],
)
def test_every_change_of_the_prompts_changes_their_key(tmp_path, changed):
    before, after = written(tmp_path / "a.jsonl", RECORDS), written(tmp_path / "b.jsonl", changed)
    for with_references in (True, False):
        assert key(after, with_references) != key(before, with_references)


def test_an_answer_is_part_of_the_key_only_where_answers_are_read(tmp_path):
    other = [RECORDS[0] | {"completion": "another answer"}, *RECORDS[1:]]
    before, after = written(tmp_path / "a.jsonl", RECORDS), written(tmp_path / "b.jsonl", other)
    assert key(after, with_references=True) != key(before, with_references=True)
    assert key(after, with_references=False) == key(before, with_references=False)


def test_the_key_of_a_corpus_is_that_of_its_documents(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\r\n\r\n\r\n".join(d.replace("\n", "\r\n") for d in DOCUMENTS).encode()))
    lines = written(tmp_path / "c.jsonl", [{"text": d} for d in DOCUMENTS])
    want = corpus_key(str(tmp_path / "a.txt"))
    assert corpus_key(str(tmp_path / "b.txt.gz")) == corpus_key(lines) == want
    for changed in (DOCUMENTS[:2], DOCUMENTS[::-1], [*DOCUMENTS[:2], "The third!"]):
        assert corpus_key(written(tmp_path / "d.jsonl", [{"text": d} for d in changed])) != want
