"""Settings for every test."""

import torch

# The models here are so small that starting threads takes longer than the work.
torch.set_num_threads(1)
