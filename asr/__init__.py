"""A plugin-based speech-recognition pipeline with CTC."""
