"""Settings for every test."""

import os

import torch

# A name that is no local folder is looked up at once in vain, instead of after a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models here are so small that starting threads takes longer than the work.
torch.set_num_threads(1)
