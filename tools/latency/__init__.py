"""The latency table: its models, its cells (one measurement each, on disk), its text and its picture."""
