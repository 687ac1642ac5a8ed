"""One thread: tiny models run fastest so, and two processes with two threads each would wait for one another."""

import torch

torch.set_num_threads(1)
