"""Log-likelihoods of texts that are given: of a file's, and of lm-evaluation-harness's tasks."""
