"""Neighbouring frameworks."""
