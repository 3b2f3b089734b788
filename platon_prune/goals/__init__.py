"""How far a metric may fall, and what a run does when it falls further."""
