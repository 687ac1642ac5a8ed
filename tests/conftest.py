"""One thread: tiny models run fastest so, and two processes with two threads each would wait for one another."""

import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--trained_model", help="a recogniser's folder, for test_trained_model.py")
    parser.addoption("--chunk_length_s", type=float, help="of a minute there; 15 for CTC, 6 for a language model")
    parser.addoption("--recordings", help="a manifest of recordings that it was not trained on, in its language")
