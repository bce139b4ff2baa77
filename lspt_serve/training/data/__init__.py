"""Training images from every layout of the field, decoded once.

`find_source` tells the layouts apart; each has a file here and gives the same: samples with a label
each, in three splits. `load_dataset` checks and decodes them.
"""

from lspt_serve.training.data.dataset import Dataset, Split, load_dataset
from lspt_serve.training.data.decode import OnBadImage
from lspt_serve.training.data.source import SPLITS

__all__ = ["SPLITS", "Dataset", "OnBadImage", "Split", "load_dataset"]
