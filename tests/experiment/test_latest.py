"""The names of the recipe that ran last."""

import os

import places

from tdistill.experiment.latest import LATEST


def names(root):
    return {path.name: os.readlink(path) for path in (root / LATEST).iterdir()}


def test_names_lead_to_the_artefacts_of_the_recipe_that_ran_last(tiny_recipe):
    one = places.made(tiny_recipe, stages=("models", "rollout", "sft", "train"))
    splits = {"rollouts-train", "rollouts-valid", "rollouts-test"}
    assert set(names(one.root)) == {*splits, "sft", "sft_continued", "distilled"}
    assert (one.root / LATEST / "distilled").resolve() == places.student(one).resolve()
    assert (one.root / LATEST / "rollouts-valid").resolve() == places.rollout(one, "valid").resolve()
    del one  # and its lock
    two = places.made(tiny_recipe, ["train.seeds=[3, 4]", "train.baselines={}"], stages=("models", "rollout", "sft", "train"))
    assert set(names(two.root)) == {*splits, "sft", "distilled-3", "distilled-4"}, "names of the earlier recipe are gone"
    assert all((two.root / LATEST / name).is_dir() for name in names(two.root))
