"""Datasets, samplers and the DataLoader: the names of `torch.utils.data` that dptrain has.

Must not know: models, gradients.
"""

from dptrain.data.collate import default_collate, default_convert
from dptrain.data.dataset import Dataset, IterableDataset, Subset, TensorDataset, random_split
from dptrain.data.distributed import DistributedSampler
from dptrain.data.joined import ChainDataset, ConcatDataset, StackDataset
from dptrain.data.loader import DataLoader
from dptrain.data.prefetch import PrefetchLoader
from dptrain.data.ranks import local_rank_zero_first
from dptrain.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from dptrain.data.sharding import shard
from dptrain.data.worker import get_worker_info

__all__ = [
    "BatchSampler",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "IterableDataset",
    "PrefetchLoader",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "StackDataset",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "local_rank_zero_first",
    "random_split",
    "shard",
]
