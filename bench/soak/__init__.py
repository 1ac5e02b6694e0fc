"""Mixed traffic with faults for as long as wanted: every picture has to be right, and nothing may
grow or be left behind.

    make soak MINUTES=60
    python -m bench.soak --minutes 60 [--clients 3] [--threads 2] [--seed 1] [--calm]

| module | does |
|---|---|
| `traffic` | what clients ask for |
| `clients` | their processes |
| `faults` | kills, stops, hangs, damaged files, a full disk |
| `watch` | memory, files, shared memory, jobs of the server over time |
| `report` | table, JSON and figure |
"""
