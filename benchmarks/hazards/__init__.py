"""What `benchmarks/campaign.py` does to the toolkit: bad inputs, kills, full disks."""
