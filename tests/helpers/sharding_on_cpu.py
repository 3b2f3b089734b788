"""Has accelerate shard on the CPU as it does on accelerators: `enable()`.

Its state keeps the FSDP plugin only where processes have accelerators; on the CPU it drops it
without a word, and the trainer wraps the model in DDP. All else works on the CPU as well.

As a program it does so and runs `platon-prune` with its arguments; ``AND`` among them divides the
commands of several runs, one after the other.
"""

import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

AND = "AND"


def enable():
    """Do so from here on in this process."""
    original = AcceleratorState.__init__
    if getattr(original, "shards_on_cpu", False):
        return

    def make(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    make.shards_on_cpu = True
    AcceleratorState.__init__ = make


def main(words):
    """The first exit status that is not 0."""
    from trainer_jobs import one_accelerator

    from platon_prune import cli

    enable()
    while words:
        end = words.index(AND) if AND in words else len(words)
        with one_accelerator():
            status = cli.main(words[:end])
        if status:
            return status
        words = words[end + 1 :]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
