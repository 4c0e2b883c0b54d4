"""The models: a transformers causal LM whose layers draw their weights from a streamer."""
