"""The mathematics of noising: processes, losses, variational terms."""
