"""Token merging: which tokens are alike, and what they become."""
