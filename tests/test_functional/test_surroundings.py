# SPDX-License-Identifier: Apache-2.0
"""What a caller has switched on around a call changes no result, and is not kept for later calls."""

import contextlib
import functools
import sys

import pytest
import torch
from _function_calls import CALLS, assert_same, everywhere, tensors

import clusterplug.functional as functional

# their results for integers alone are of torch's default type, as those of torch are
BY_DEFAULT_TYPE = {'co_association'}


@contextlib.contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def kept():
    """What the package keeps between calls: emptied, so that a test sees what is made first."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith('clusterplug.')]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, functools._lru_cache_wrapper)
    }


def run(name, given, gradient):
    """Results of a call; with ``gradient`` also a backward pass through what allows one."""
    args, options = everywhere(given, lambda x: x.detach().clone())
    if gradient:
        args = [x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
    found = tensors(getattr(functional, name)(*args, **options))
    through = [x.double().sum() for x in found if x.requires_grad]
    if through:
        sum(through).backward()
    return [x.detach() for x in found]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_surroundings_of_a_call():
    caches = kept()
    assert caches
    for name in CALLS:
        expected = run(name, CALLS[name](), False)
        for around in (default_type(torch.bfloat16), torch.inference_mode()):
            given = CALLS[name]()
            for each in caches:
                each.cache_clear()
            if name not in BY_DEFAULT_TYPE or isinstance(around, torch.inference_mode):
                with around:
                    assert_same(run(name, given, False), expected)
        run(name, CALLS[name](), True)  # what inference mode has left behind can be saved for a backward pass
