"""Define what each stage does; ``pipeline`` decides whether it has to."""

from tdistill.experiment.models import make_models, models_settings
from tdistill.experiment.pipeline import StageSpec
from tdistill.experiment.report_stage import make_report, report_settings
from tdistill.experiment.rollouts import make_rollouts, rollout_settings
from tdistill.experiment.sparsity import make_sparsity, sparsity_settings
from tdistill.experiment.students import make_sft, make_students, sft_settings, train_settings
from tdistill.experiment.systems import evaluate_settings, make_evaluation

STAGES: dict[str, StageSpec] = {
    "models": StageSpec((), models_settings, make_models),
    "rollout": StageSpec(("models",), rollout_settings, make_rollouts),
    "sft": StageSpec(("models", "rollout"), sft_settings, make_sft, parallel=True),
    "train": StageSpec(("models", "rollout", "sft"), train_settings, make_students, parallel=True),
    "evaluate": StageSpec(("models", "rollout", "sft", "train"), evaluate_settings, make_evaluation),
    "report": StageSpec(("evaluate",), report_settings, make_report),
    "sparsity": StageSpec(("models", "rollout"), sparsity_settings, make_sparsity, on_demand=True),
}
