"""What a GPU must show: tests on the device, and measurements; `python -m tests.gpu` runs both, on a CPU too."""
