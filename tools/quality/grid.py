"""What is measured on which task: budgets, and how many calibration inputs."""

from __future__ import annotations

BUDGETS: dict[str, tuple[float, ...]] = {
    "reviews": (70, 60, 50, 40, 30, 20),
    "embeddings": (70, 60, 50, 40),
    "photos": (80, 70, 65, 60, 50, 40),
    "mnist-vit": (70, 60, 50, 40, 30),
    "mnist-resnet": (70, 60, 50, 40, 30),
    "spans": (70, 60, 50, 40),
}
"""Percent of the dense FLOPs."""

SAMPLES = {"reviews": 512, "embeddings": 512, "photos": 256, "mnist-vit": 512, "mnist-resnet": 512, "spans": 512}
"""Calibration inputs."""
