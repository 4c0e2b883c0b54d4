"""One thread per test process: on two busy cores, torch's own pool makes tiny models many times slower."""

import torch

torch.set_num_threads(1)
