"""Datasets, samplers and the DataLoader: the names of `torch.utils.data` that dptrain has.

Must not know: models, gradients.
"""

from dptrain.data.collate import default_collate, default_convert
from dptrain.data.dataset import Dataset, Subset, TensorDataset
from dptrain.data.distributed import DistributedSampler
from dptrain.data.loader import DataLoader
from dptrain.data.ranks import local_rank_zero_first
from dptrain.data.sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler

__all__ = [
    "BatchSampler",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Subset",
    "TensorDataset",
    "default_collate",
    "default_convert",
    "local_rank_zero_first",
]
