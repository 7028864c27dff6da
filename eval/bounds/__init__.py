"""Bits per dimension: the bound of each family that has one."""
