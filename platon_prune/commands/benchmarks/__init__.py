"""What `bench`, `demo`, `deploy` and `scale` measure, and with what."""
