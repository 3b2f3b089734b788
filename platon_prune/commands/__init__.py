"""The subcommands of ``platon-prune``, one file each."""
