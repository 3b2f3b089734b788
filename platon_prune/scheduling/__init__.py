"""The scheduler and what it keeps."""
