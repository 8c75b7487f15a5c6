"""Questions composed from the toolkit: studies, the organisms they run on, the command line."""
