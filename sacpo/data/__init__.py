"""Training data and evaluation prompts.

Modules: reading rows from files and the hub (`rows`), their fields (`fields`), rows to training examples
(`preferences`), examples to token ids (`tokenise`), batches by length (`batching`), checks of checkpoints
(`pretrained`), models that stay loaded (`model_cache`), evaluation prompts (`prompts`), and pairs that test judges
(`canaries`).
The package may import `sacpo.errors`, `sacpo.spaces` and `sacpo.synthetic`; only `rows` may import `datasets` and
pyarrow, inside functions.
"""
