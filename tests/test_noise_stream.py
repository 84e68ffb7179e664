"""The noise stream: its state moves on by itself, resumes from a state_dict, and knows nothing of batches and ranks."""

import torch

from fastflow.nn import NoiseStream
from fastflow.ops import uniform_noise

ROWS = torch.arange(6) + 2**32


def test_draw_n_is_the_noise_of_step_n():
    stream = NoiseStream(seed=2**64 - 3)
    for step in range(3):
        for dtype in (torch.float32, torch.float64):
            again = NoiseStream(2**64 - 3)
            again.step.fill_(step)
            expected = uniform_noise((6, 2, 3), seed=2**64 - 3, step=step, rows=ROWS, dtype=dtype)
            assert torch.equal(again.draw((6, 2, 3), ROWS, dtype), expected)
        assert torch.equal(stream.draw((6, 2, 3), ROWS), expected.float())
    assert stream.step.item() == 3


def test_resumes_from_the_state_dict():
    stream = NoiseStream(seed=1)
    stream.draw((6, 5), ROWS)
    resumed = NoiseStream(seed=0)
    resumed.load_state_dict(stream.state_dict())
    assert torch.equal(resumed.draw((6, 5), ROWS), stream.draw((6, 5), ROWS))
    assert resumed.state_dict() == stream.state_dict() == {"seed": torch.tensor(1), "step": torch.tensor(2)}


def test_ranks_draw_what_one_process_draws():
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    ranks = [NoiseStream(seed=9), NoiseStream(seed=9)]
    alone = NoiseStream(seed=9)
    for _ in range(2):
        together = alone.draw((6, 7), ROWS)[order]
        parts = [rank.draw((len(rows), 7), rows) for rank, rows in zip(ranks, ROWS[order].split([2, 4]), strict=True)]
        assert torch.equal(together, torch.cat(parts))


def test_casts_of_a_model_leave_the_state_alone():
    stream = NoiseStream(seed=2**40).to(torch.bfloat16)
    assert (stream.seed.item(), stream.step.dtype) == (2**40, torch.int64)


def test_draws_inside_a_compiled_function():
    torch.compiler.reset()
    stream, plain = NoiseStream(seed=4), NoiseStream(seed=4)
    compiled = torch.compile(lambda rows: 2 * stream.draw((6, 5), rows), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert torch.equal(compiled(ROWS), 2 * plain.draw((6, 5), ROWS))
