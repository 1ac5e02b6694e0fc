"""`tessera-serve`: finds tritonserver, starts it on a bundle, keeps its model processes alive."""
