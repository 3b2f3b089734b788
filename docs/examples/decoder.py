"""Prune a small decoder while it learns to go on with a text; what is saved still generates."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import platon_prune

torch.manual_seed(0)

# Your model: AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B")
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
)
# Your texts, as blocks of tokens. Here each token is the one before it plus one.
tokens = (torch.randint(32, (256, 1)) + torch.arange(16)) % 32

num_steps = 120
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = platon_prune.global_unstructured(
    model,
    amount=0.5,
    max_amount=0.8,  # no layer loses everything
    total_steps=num_steps,
    warmup_steps=20,
    cooldown_steps=40,
    # With little memory: state_dtype=torch.bfloat16, 7 bytes a weight instead of 13
)
for _ in range(num_steps):
    batch = tokens[torch.randint(len(tokens), (16,))]
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
platon_prune.remove(model)
model.save_pretrained("decoder-50")

decoder = AutoModelForCausalLM.from_pretrained("decoder-50")
prompt = torch.tensor([[3, 4, 5, 6]])
answer = decoder.generate(prompt, max_new_tokens=8, do_sample=False)
print(answer[0].tolist())
print(f"{platon_prune.summary(decoder).total.sparsity:.1%} of the selected weights are zero")
assert answer[0].tolist() == list(range(3, 15))
