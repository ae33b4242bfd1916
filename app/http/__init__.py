"""The HTTP side: thin routes over the domains, and the conventions that all of them share."""
