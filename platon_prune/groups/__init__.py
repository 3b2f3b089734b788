"""What lives or dies together, and what it costs."""
