"""Settings for every test, and the device of the core tests."""

import gc
import os

import pytest
import torch

# A name that is no local folder is looked up at once in vain, instead of after a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models here are so small that starting threads takes longer than the work.
torch.set_num_threads(1)

# Their tests stop a run where they have seen enough, or let it go on. Those of trainers, commands
# and pages, which do what users do, must not be warned of it.
WINGS_OF_PARTS = {
    "choice", "export", "groups", "history", "masks", "plots", "pruning", "reports", "runtimes",
    "scheduling", "shrinking",
}  # fmt: skip
PROGRAMS_OF_ANY_STEPS = {"test_properties.py", "test_soak.py"}
OF_OTHER_LENGTH = (
    "ignore:(masks are removed at step|step .* is beyond total_steps):platon_prune.PruningWarning"
)


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="run the core tests on this device, such as cuda"
    )


def pytest_configure(config):
    device = config.getoption("--device")
    if torch.device(device).type == "cpu":
        return
    from on_device import VARIABLE, OnDevice

    os.environ[VARIABLE] = device
    # Tests compare bits: of runs with each other, and of sums with sums.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    mode = OnDevice(device)
    mode.__enter__()
    config.add_cleanup(lambda: mode.__exit__(None, None, None))


# Each takes half a minute or more. Begun last, one of them would keep one core busy alone.
LONGEST = (
    "test_properties.py", "test_ranks.py", "test_recipe_ranks.py", "test_trainer_ranks.py",
    "test_demo.py", "test_ranks_checkpoints.py", "test_ranks_killed.py", "test_resume.py",
    "test_shrink_exported.py", "test_packaging.py", "test_study.py", "test_bench.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in WINGS_OF_PARTS or item.path.name in PROGRAMS_OF_ANY_STEPS:
            # In front, so that what a test says of itself is heard after it.
            item.add_marker(pytest.mark.filterwarnings(OF_OTHER_LENGTH), append=False)
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_unconfigure():
    # Or extension modules would tell of what nobody freed.
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def only_new_objects_are_collected():
    """Leave what imports and earlier files made out of garbage collections, which tests still do.

    transformers' trainer, for one, collects after each run: that took most of a small run's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request):
    """What a core test's tensors are on, for what has to be told."""
    return torch.device(request.config.getoption("--device"))
