"""Tensors walked, packed, ranked and spread over processes; knows no module."""
