"""A mask on a module, and which tensors get one."""
