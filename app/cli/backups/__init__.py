"""What `repliq backup` and `repliq restore` are made of."""
