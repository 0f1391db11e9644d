"""A quantised teacher: it is loaded as asked, and what can't be is refused before anything starts."""

import importlib.util
import json
from pathlib import Path

import places
import pytest
import torch
import yaml

from tdistill.data.dataset import RolloutDataset
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.models import load_teacher
from tdistill.experiment.preflight import preflight
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.models.find import find_model
from tdistill.models.load import check_quantization, load_model
from tdistill.runtime.errors import ModelError

EIGHT_BIT = {"quant_method": "bitsandbytes", "load_in_8bit": True}
# No development dependency: where it is installed, every start of transformers has a line of its own from it.
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture
def recipe(tiny_recipe: Path) -> Path:
    content = yaml.safe_load(tiny_recipe.read_text())
    content["teacher"]["quantization"] = EIGHT_BIT
    tiny_recipe.write_text(yaml.safe_dump(content))
    return tiny_recipe


@needs_bitsandbytes
def test_an_eight_bit_teacher_is_near_the_whole_one_and_not_the_same(tiny_teacher: Path) -> None:
    source = find_model(str(tiny_teacher))
    whole, quantised = load_model(source), load_model(source, quantization=EIGHT_BIT)
    assert quantised.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    ids = torch.arange(20).unsqueeze(0)
    with torch.inference_mode():
        a, b = (m(ids).logits.float().log_softmax(-1) for m in (whole, quantised))
    assert 0.0 < (a.exp() * (a - b)).sum(-1).mean() < 0.05


@needs_bitsandbytes
def test_roll_outs_come_from_the_quantised_teacher(recipe: Path) -> None:
    runs = [places.made(recipe, overrides, stages=("models", "rollout")) for overrides in (["teacher.quantization=null"], [])]
    assert places.start(runs[0]) == places.start(runs[1])
    assert places.rollout(runs[0]) != places.rollout(runs[1])
    assert load_teacher(runs[1]).model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    caches = [RolloutDataset(places.rollout(run)) for run in runs]
    texts = [[data.text(i) for i in range(len(data))] for data in caches]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("config", [{"quant_method": "nope"}, {"quant_method": "gptq", "bits": 4}], ids=json.dumps)
def test_what_can_not_be_used_is_refused_before_anything_starts(config: dict, recipe: Path) -> None:
    with pytest.raises(ModelError, match="can't be used here"):
        check_quantization(config)
    with pytest.raises(ModelError, match="can't be used here"):
        preflight(Experiment(open_recipe(recipe, [f"teacher.quantization={json.dumps(config)}"])))
