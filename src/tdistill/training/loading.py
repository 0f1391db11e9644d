"""Load batches: candidates travel without padding, and responses of about one length come together where that is asked."""

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from tdistill.data.collate import with_padding
from tdistill.data.dataset import RolloutDataset
from tdistill.training.schedule import ByLength, examples_per_step, steps_per_epoch


class LoadingTrainer(Trainer):
    """Pad the candidates of a batch on the device, and group the examples of a ``RolloutDataset`` by their whole length."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        data = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(data, RolloutDataset):
            return super()._get_train_sampler(data)
        per_epoch = steps_per_epoch(self.args, len(data))
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ByLength(data.lengths(), examples_per_step(self.args), seed, lambda: self.state.global_step // per_epoch)

    def _prepare_inputs(self, inputs: dict[str, Tensor | Any]) -> dict[str, Tensor | Any]:
        return with_padding(super()._prepare_inputs(inputs))
