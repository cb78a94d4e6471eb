import pytest
import torch

from edgesmith.execution.training import relative_error, torch_threads


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_set_inside_and_given_back():
    torch.set_num_threads(2)
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_threads_are_given_back_after_an_error():
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="inside"), torch_threads(1):
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


def test_threads_nest():
    torch.set_num_threads(1)
    with torch_threads(2):
        with torch_threads(3):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_relative_error_counts_only_what_is_shown() -> None:
    teacher = torch.ones(2, 3, 4)
    student = teacher.clone()
    student[:, 2] = 100.0
    shown = torch.tensor([[True, True, False]] * 2)
    assert float(relative_error(student, teacher, shown)) == 0
    assert float(relative_error(student, teacher)) == pytest.approx(99**2 / 3, rel=1e-6)


def test_the_error_of_half_precision_is_summed_in_single():
    wanted = torch.full((8,), 300.0, dtype=torch.float16)
    assert float(relative_error(wanted / 2, wanted)) == pytest.approx(0.25, rel=1e-6)


def test_nothing_wanted_gives_a_finite_error():
    found = torch.zeros(3, requires_grad=True)
    error = relative_error(found, torch.zeros(3))
    error.backward()
    assert float(error.detach()) == 0
    assert found.grad.tolist() == [0, 0, 0]
