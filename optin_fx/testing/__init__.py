"""What the test suite and `tools/zoo` share: stock models, small patterns, and the means to compare programs on them."""
