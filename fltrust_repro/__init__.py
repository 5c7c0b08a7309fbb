"""Local model poisoning attacks to Byzantine-robust federated learning, in Apache MXNet.

A reproduction of Fang, Cao, Jia and Gong (USENIX Security 2020) and a test bench for further
aggregation rules and attacks under the paper's protocol.
"""

__version__ = "0.1.0"
