"""What a step does: to the tensors, and where a graph does it again."""
