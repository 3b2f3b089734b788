"""Training programs: fine-tune and prune by the task's usual settings."""
