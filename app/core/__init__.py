"""What every domain stands on and what stands on nothing of ours."""
