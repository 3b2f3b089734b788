"""Train replicas in two processes that choose together: torchrun --nproc-per-node 2 FILE."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import platon_prune

NUM_STEPS = 60


def train():
    """Train this process's replica on its own batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))  # yours
    # Before the model is wrapped. For FSDP2 write fully_shard in the place of the wrapper.
    scheduler = platon_prune.global_unstructured(
        model, amount=0.9, total_steps=NUM_STEPS, warmup_steps=10, cooldown_steps=20, window=5
    )
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-2)

    batches = torch.Generator().manual_seed(dist.get_rank())  # yours: a DistributedSampler
    for _ in range(NUM_STEPS):
        inputs = torch.randn(32, 16, generator=batches)
        nn.functional.cross_entropy(replica(inputs), inputs[:, :4].argmax(1)).backward()
        optimizer.step()
        scheduler.step()  # in every process
        optimizer.zero_grad()
    platon_prune.remove(model)

    if dist.get_rank() == 0:  # all have the same weights, so one writes them
        print(platon_prune.summary(model))
        platon_prune.save(model, "two_processes.safetensors")
    return model


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train()
    dist.destroy_process_group()
