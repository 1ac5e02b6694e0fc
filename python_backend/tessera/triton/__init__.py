"""The Triton models: one module per model of `model_repository/`, each with a `TritonPythonModel`.

`pb` is the only module that imports Triton's own `triton_python_backend_utils`.
"""
