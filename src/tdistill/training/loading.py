"""Load batches and compile the student: how data and model come to the trainer."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from tdistill.data.collate import with_padding
from tdistill.data.dataset import RolloutDataset
from tdistill.training.compiled import compile_layers
from tdistill.training.schedule import ByLength, examples_per_step, steps_per_epoch


class LoadingTrainer(Trainer):
    """Pad the candidates of a batch on the device, group the examples of a ``RolloutDataset`` by their whole length, and compile layers."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.torch_compile:
            compile_layers(self.model, self.args.torch_compile_backend, self.args.torch_compile_mode)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        found = super()._build_accelerator_args(**kwargs)
        found.pop("dynamo_plugin", None)  # accelerate would compile the whole student, its head and objective included
        return found

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        data = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(data, RolloutDataset):
            return super()._get_train_sampler(data)
        per_epoch = steps_per_epoch(self.args, len(data))
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ByLength(data.lengths(), examples_per_step(self.args), seed, lambda: self.state.global_step // per_epoch)

    def _prepare_inputs(self, inputs: dict[str, Tensor | Any]) -> dict[str, Tensor | Any]:
        return with_padding(super()._prepare_inputs(inputs))
