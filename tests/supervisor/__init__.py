"""The supervisor: what it decides, with everything else a fake."""
