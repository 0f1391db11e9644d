"""The artefact: its key, its manifest, and what happens to a damaged file."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest

from tdistill.experiment.artefact import LOCK, MANIFEST, Artefact, build, read, read_manifest
from tdistill.runtime.errors import OutputError
from tdistill.runtime.locks import hold


def artefact(root, settings=None, **more):
    def make(directory):
        (directory / "content.txt").write_text("content")
        (directory / "loose").mkdir(exist_ok=True)
        (directory / "loose/page.html").write_text("page")
        return {"n": 3}

    return Artefact(root, "things", "a thing", settings or {"a": 1.5, "seed": 3}, make, loose=("loose",), **more)


def made(found):
    return build(found, {"recipe": {}}, nullcontext())


def test_it_is_complete_once_its_manifest_is_written_and_not_before(tmp_path):
    found = artefact(tmp_path)
    assert read(found) is None
    found.directory.mkdir(parents=True)
    found.make(found.directory)
    assert read(found) is None, "files without a manifest are no artefact"
    manifest = made(found)
    assert manifest.notes == {"n": 3}
    assert list(manifest.files) == ["content.txt"]
    assert read(found) == manifest


def test_the_key_is_of_kind_format_settings_and_inputs_and_of_nothing_else(tmp_path):
    first = artefact(tmp_path)
    assert artefact(tmp_path / "elsewhere").key == first.key, "the place is no part of it"
    assert replace(first, title="another name").key == first.key
    assert replace(first, settings={"seed": 3, "a": 1.5}).key == first.key, "the order of settings is no part of it"
    others = [
        replace(first, kind="others"),
        replace(first, format=2),
        replace(first, settings={"a": 1.25, "seed": 3}),
        replace(first, settings={"a": 1.5, "seed": 4}),
        replace(first, inputs={"x": artefact(tmp_path, {"b": 1})}),
        replace(first, inputs={"y": artefact(tmp_path, {"b": 1})}),
        replace(first, inputs={"x": artefact(tmp_path, {"b": 2})}),
    ]
    keys = [first.key, *(other.key for other in others)]
    assert len(set(keys)) == len(keys)


def test_the_group_leaves_out_seeds_those_of_the_inputs_too(tmp_path):
    def student(seed, start_seed, a=1.5):
        return artefact(tmp_path, {"a": a, "seed": seed}, inputs={"start": artefact(tmp_path, {"seed": start_seed})})

    assert student(1, 1).group == student(2, 1).group == student(1, 2).group
    assert student(1, 1).group != student(1, 1, a=2.0).group
    assert len({student(1, 1).key, student(2, 1).key, student(1, 2).key}) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "content.txt").write_text("other"), "was altered or is damaged"),
        (lambda d: (d / "content.txt").unlink(), "is missing"),
        (lambda d: (d / MANIFEST).write_text("{"), "JSON"),
        (lambda d: (d / MANIFEST).write_text("[]"), MANIFEST),
        (lambda d: edited(d, lambda m: m["notes"].update(n=4)), "altered or is damaged"),
        (lambda d: edited(d, lambda m: m.update(key="0" * 12)), "is that of"),
        (lambda d: edited(d, lambda m: m.pop("files")), "files"),
        (lambda d: edited(d, lambda m: m["files"].update({"../x": "0" * 64})), "altered or is damaged"),
    ],
)
def test_damage_is_refused_with_what_to_delete(tmp_path, damage, message):
    found = artefact(tmp_path)
    made(found)
    damage(found.directory)
    with pytest.raises(OutputError, match=message) as caught:
        read(found)
    assert str(found.directory) in str(caught.value)
    assert "elete" in str(caught.value)


def edited(directory, change):
    record = json.loads((directory / MANIFEST).read_text())
    change(record)
    (directory / MANIFEST).write_text(json.dumps(record))


def test_people_may_change_loose_files_and_only_those(tmp_path):
    found = artefact(tmp_path)
    made(found)
    (found.directory / "loose/page.html").write_text("with a note")
    (found.directory / ".hidden").write_text("x")
    assert read(found) is not None


def test_a_damaged_file_of_an_artefact_that_resumes_can_be_deleted_alone(tmp_path):
    found = artefact(tmp_path, resumes=True)
    made(found)
    (found.directory / "content.txt").write_text("other")
    with pytest.raises(OutputError, match="the other files are kept"):
        read(found)


def test_a_copy_may_lack_files_that_nobody_reads(tmp_path):
    found = artefact(tmp_path)
    made(found)
    (found.directory / "content.txt").unlink()
    assert read_manifest(found.directory, copied=True).notes == {"n": 3}


def test_two_processes_do_not_make_one_artefact_at_a_time(tmp_path):
    found = artefact(tmp_path)
    found.directory.mkdir(parents=True)
    lock = hold(found.directory / LOCK, "it")
    made(found)  # this process has the lock already
    lock.release()
    assert not (found.directory / LOCK).exists()


def test_what_fails_leaves_no_manifest(tmp_path):
    def fail(directory):
        (directory / "half").write_text("x")
        raise ValueError("no")

    found = replace(artefact(tmp_path), make=fail)
    with pytest.raises(ValueError, match="no"):
        made(found)
    assert read(found) is None


def test_a_file_that_was_added_is_refused_since_it_may_be_read_in_the_place_of_another(tmp_path):
    found = artefact(tmp_path)
    made(found)
    (found.directory / "adapter_config.json").write_text("{}")
    with pytest.raises(OutputError, match="adapter_config.json is no part of what was made there"):
        read(found)
    (found.directory / "adapter_config.json").unlink()
    assert read(found) is not None


def test_files_may_be_added_beside_pages(tmp_path):
    found = artefact(tmp_path, pages=("content.txt",))
    made(found)
    (found.directory / "own.md").write_text("x")
    assert read(found) is not None
