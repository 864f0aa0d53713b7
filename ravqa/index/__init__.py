"""Late-interaction indexes: passages' token vectors, searched by MaxSim.

score(q, d) = sum_i max_j <q_i, d_j>
"""
