"""What a server tells of itself, for routers to choose by.

`denoise` publishes its part, `jobs` adds what the board, the ControlNets' table and the template
store say.
"""
