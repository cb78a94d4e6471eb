import pytest
import torch

from edgesmith.execution.training import torch_threads


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
