"""Speed, as ratios against the bare kernels measured in the same run."""
