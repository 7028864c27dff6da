"""Objectives: each turns a clean batch into one loss per example."""
