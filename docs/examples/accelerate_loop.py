"""Write the loop with Accelerate, for one device or many: accumulated gradients and checkpoints."""

import torch
from accelerate import Accelerator
from torch import nn

import platon_prune
from platon_prune.integrations.accelerate_steps import num_optimizer_steps

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)  # cpu=True only for the example

# Your model and your data.
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
inputs = torch.randn(1024, 16)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].argmax(1))
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)

num_epochs = 4
loader = accelerator.prepare(loader)  # first, so that the steps are those of one process
num_steps = num_optimizer_steps(accelerator, loader, num_epochs)
scheduler = platon_prune.global_unstructured(
    model, amount=0.8, total_steps=num_steps, warmup_steps=0.1, cooldown_steps=0.4, window=5
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)  # once the masks are there
accelerator.register_for_checkpointing(scheduler)  # save_state and load_state take it along

for epoch in range(num_epochs):
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
            if accelerator.sync_gradients:  # the optimizer has made its step
                scheduler.step(skipped=accelerator.optimizer_step_was_skipped)
            optimizer.zero_grad()
    accelerator.save_state(f"epoch-{epoch}")

assert scheduler.last_step == num_steps
model = platon_prune.remove(accelerator.unwrap_model(model))
if accelerator.is_main_process:
    print(platon_prune.summary(model))
    torch.save(model.state_dict(), "pruned.pt")
assert platon_prune.summary(model).total.kept == round(0.2 * (16 * 64 + 64 * 4))
